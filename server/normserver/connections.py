"""Connections of this process, found by their callers' addresses.

gRPC has no way to end a call whose answer is not read: a status waits behind the answer, and both wait in memory. What
ends is the connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

_DESCRIPTORS = "/proc/self/fd"


def close(caller: str) -> bool:
    """Shut down the connection from an address as gRPC writes it (ipv4:127.0.0.1:50000); whether there was one.

    A unix socket's callers have no address.
    """
    wanted = _address(caller)
    if wanted is None:
        return False
    for name in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError, ValueError):  # it was closed meanwhile, or is no connection
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode) and _shut_down(int(name), wanted):
                return True
    return False


def _shut_down(descriptor: int, wanted: tuple[str, int]) -> bool:
    # A descriptor of our own: gRPC may close its, and the number may stand for another connection then.
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        host, port = connection.getpeername()[:2]
        if (host.removeprefix("::ffff:"), port) != wanted:
            return False
        connection.shutdown(socket.SHUT_RDWR)
        return True


def _address(caller: str) -> tuple[str, int] | None:
    kind, _, address = caller.partition(":")
    host, _, port = address.replace("%5B", "[").replace("%5D", "]").rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]").partition("%")[0].removeprefix("::ffff:"), int(port)
