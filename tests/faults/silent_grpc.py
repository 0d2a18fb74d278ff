"""An attacker without credentials, in a process of its own: python -m tests.faults.silent_grpc TARGET KIND:COUNT...

Prints a line when all that it wants is open, and keeps it open until its standard input ends. Kinds: `tcp` sends
nothing, `hello` begins a TLS handshake, `tls` completes it, `settings` begins HTTP/2 too, `health` watches
grpc.health.v1.
"""

from __future__ import annotations

import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.faults.http2 import DATA, END_STREAM, PREFACE, SETTINGS, frame, opening

_STREAMS = 100  # of health, on one connection
_WATCH = "/grpc.health.v1.Health/Watch"


def connect(target: str, context: ssl.SSLContext, kind: str) -> socket.socket:
    """A connection as far as its kind goes."""
    host, _, port = target.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    if kind == "tcp":
        return connection
    if kind == "hello":
        sent = ssl.MemoryBIO()
        try:
            context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(sent.read()[:100])
        return connection
    connection = context.wrap_socket(connection)
    if kind != "tls":
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    if kind == "health":
        for stream in range(1, 2 * _STREAMS, 2):
            connection.sendall(opening(stream, _WATCH) + frame(DATA, END_STREAM, stream, bytes(5)))
    return connection


def main(target: str, wanted: Sequence[str]) -> None:
    """Open it all, and keep it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    kept, refused = [], 0
    for one in wanted:
        kind, _, count = one.partition(":")
        for _ in range(int(count) // (_STREAMS if kind == "health" else 1)):
            try:
                kept.append(connect(target, context, kind))
            except OSError:
                refused += 1
    print(f"{len(kept)} opened, {refused} refused", flush=True)
    sys.stdin.read()


@contextmanager
def attacking(target: str, *wanted: str) -> Iterator[str]:
    """While it lasts so many of each kind are open, unless the server closes them; yields what the attacker says."""
    command = [sys.executable, "-m", "tests.faults.silent_grpc", target, *wanted]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline().strip()
            assert said, "the attacker failed"
            yield said
        finally:
            process.stdin.close()
            process.wait(30)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
