"""Connections of this process, found by their callers' addresses, as gRPC writes those (ipv4:127.0.0.1:50000).

gRPC has no way to end a call whose answer is not read: a status waits behind the answer, and both wait in memory. What
ends is the connection. Nor does it tell how much of an answer is read, which Linux knows. Callers by a unix socket have
no address: theirs are not found.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator

_DESCRIPTORS = "/proc/self/fd"
# Where tcpi_bytes_acked lies (linux/tcp.h), which does not move.
_ACKNOWLEDGED = slice(120, 128)


def close(caller: str) -> bool:
    """Shut down the connection from an address; whether there was one."""
    for _, connection in _from((caller,)):
        connection.shutdown(socket.SHUT_RDWR)
        return True
    return False


def delivered_bytes(callers: Iterable[str]) -> dict[str, int]:
    """How much has arrived at each of these callers so far, of whom there is a connection."""
    return {caller: _acknowledged_bytes(connection) for caller, connection in _from(callers)}


def _from(callers: Iterable[str]) -> Iterator[tuple[str, socket.socket]]:
    """The connections of those who are found, each open as long as it is looked at."""
    wanted = {address: caller for caller in callers if (address := _address(caller)) is not None}
    for name in os.listdir(_DESCRIPTORS) if wanted else ():
        with contextlib.suppress(OSError, ValueError):  # it was closed meanwhile, or is no connection
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            # A descriptor of our own: gRPC may close its, and the number may stand for another connection then.
            with socket.socket(fileno=os.dup(int(name))) as connection:
                host, port = connection.getpeername()[:2]
                if (caller := wanted.get((host.removeprefix("::ffff:"), port))) is not None:
                    yield caller, connection


def _acknowledged_bytes(connection: socket.socket) -> int:
    """What the other end's kernel has taken: tcpi_bytes_acked of Linux's struct tcp_info."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.stop)
    return int.from_bytes(info[_ACKNOWLEDGED], sys.byteorder)


def _address(caller: str) -> tuple[str, int] | None:
    kind, _, address = caller.partition(":")
    host, _, port = address.replace("%5B", "[").replace("%5D", "]").rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]").partition("%")[0].removeprefix("::ffff:"), int(port)
