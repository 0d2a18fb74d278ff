"""Many connections that say nothing, or little, held by a process of its own.

python -m tests.faults.silent HOST PORT COUNT KIND: tells "open" once it has made them all, and then makes those anew
that the server closed, at most 50 a second, until it is killed.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.server_process import ServerProcess

KINDS = ("silent", "byte", "headers", "handshake", "health")
AGAIN_PER_SECOND = 50


@contextmanager
def held(server: ServerProcess, count: int, kind: str) -> Iterator[None]:
    """While it lasts there are so many."""
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    command = [sys.executable, "-m", "tests.faults.silent", host, port, str(count), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"open\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


def _connect(host: str, port: int, kind: str, context: ssl.SSLContext | None) -> socket.socket | None:
    """One of them; None if the server closed it at once."""
    made = socket.create_connection((host, port), 10)
    with contextlib.suppress(OSError):
        if kind == "byte":
            made.sendall(b"\x16")
        if context is not None and kind in ("handshake", "headers", "health"):
            made = context.wrap_socket(made)
        if kind == "headers":
            made.sendall(b"GET /api/GetActivity HTTP/1.1\r\nHost: localhost\r\nX-")
        if kind == "health":
            made.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            made.recv(1000)
        made.setblocking(False)
        return made
    made.close()
    return None


def main(host: str, port: int, count: int, kind: str) -> None:
    """Hold them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    encrypted = _connect(host, port, "handshake", context)
    tls = context if encrypted is not None and isinstance(encrypted, ssl.SSLSocket) else None
    made: list[socket.socket] = []
    watch = select.epoll()

    def add() -> None:
        if (one := _connect(host, port, kind, tls)) is not None:
            made.append(one)
            by_number[one.fileno()] = one
            watch.register(one, select.EPOLLRDHUP | select.EPOLLHUP)

    by_number: dict[int, socket.socket] = {}
    for _ in range(count):
        add()
    print("open", flush=True)
    while True:
        for number, _ in watch.poll(maxevents=1):
            watch.unregister(number)
            by_number.pop(number).close()
            add()
        time.sleep(1 / AGAIN_PER_SECOND)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
