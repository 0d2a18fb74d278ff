"""Connections of this process, found by their callers' addresses, as gRPC writes those (ipv4:127.0.0.1:50000).

gRPC has no way to end a call whose answer is not read: a status waits behind the answer, and both wait in memory. What
ends is the connection. Nor does it tell how much of an answer is read, which Linux knows. Callers by a unix socket have
no address: theirs are not found.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from normserver import process

log = logging.getLogger(__name__)

_DESCRIPTORS = "/proc/self/fd"
# Where tcpi_bytes_acked lies (linux/tcp.h), which does not move.
_ACKNOWLEDGED = slice(120, 128)

# How often connections are looked for; sooner, when there are so many more or fewer descriptors than at the last look,
# which costs nothing to ask where Linux counts them (6.2 and later). A look takes 8 us a descriptor, on a thread.
_LOOK_SECONDS, _COUNT_SECONDS, _UNCOUNTED_SECONDS, _BURST = 1.0, 0.02, 0.25, 64
# Looks take no more than a third of that thread's time.
_REST = 2
# After so many were closed, what they held is given back to the system: each has touched up to 90 KiB.
_MANY = 256
_TELL_SECONDS = 10.0


def close(caller: str) -> bool:
    """Shut down the connection from an address; whether there was one."""
    for _, connection in _from((caller,)):
        connection.shutdown(socket.SHUT_RDWR)
        return True
    return False


def close_all(callers: Iterable[str]) -> int:
    """Shut down the connections from these addresses; returns how many there were."""
    count = 0
    for _, connection in _from(callers):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
            count += 1
    return count


def delivered_bytes(callers: Iterable[str]) -> dict[str, int]:
    """How much has arrived at each of these callers so far, of whom there is a connection."""
    return {caller: _acknowledged_bytes(connection) for caller, connection in _from(callers)}


class Accepted(NamedTuple):
    """A connection of this process that was accepted at one of its ports."""

    descriptor: int
    inode: int
    port: int
    address: tuple[str, int]


class Scanner:
    """Finds connections that were accepted at some ports. Looks at each descriptor once."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = frozenset(ports)
        self._seen: dict[int, tuple[int, Accepted | None]] = {}

    def look(self) -> list[Accepted]:
        """Those that are open now."""
        seen: dict[int, tuple[int, Accepted | None]] = {}
        for name in os.listdir(_DESCRIPTORS):
            descriptor = int(name)
            try:
                found = os.fstat(descriptor)
            except OSError:  # it was closed meanwhile
                continue
            before = self._seen.get(descriptor)
            if before is None or before[0] != found.st_ino:
                is_socket = stat.S_ISSOCK(found.st_mode)
                before = found.st_ino, self._accepted(descriptor, found.st_ino) if is_socket else None
            seen[descriptor] = before
        self._seen = seen
        return [one for _, one in seen.values() if one is not None]

    def _accepted(self, descriptor: int, inode: int) -> Accepted | None:
        with contextlib.suppress(OSError, ValueError), _socket_of(descriptor) as connection:
            here = connection.getsockname()
            if isinstance(here, tuple) and here[1] in self._ports:
                host, port = connection.getpeername()[:2]
                return Accepted(descriptor, inode, here[1], (host.removeprefix("::ffff:"), port))
        return None


def shut_down(several: Iterable[Accepted]) -> int:
    """Shut these connections down; returns how many were still open."""
    count = 0
    for one in several:
        with contextlib.suppress(OSError, ValueError), _socket_of(one.descriptor) as connection:
            if os.fstat(connection.fileno()).st_ino == one.inode:
                connection.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


Judge = Callable[[Sequence[Accepted], float, float], Sequence[Accepted]]


class Watcher:
    """Looks for accepted connections again and again, off the event loop, and closes those that are judged so."""

    def __init__(self, judges: Sequence[tuple[Iterable[int], Judge]], closed: Callable[[int], None]) -> None:
        """`judges`: of the connections at some ports, which are to be closed; `closed` is told how many were."""
        self._judges = [(frozenset(ports), judge) for ports, judge in judges]
        self._scanner = Scanner(port for ports, _ in self._judges for port in ports)
        self._closed = closed
        self._untold, self._told_at = 0, -_TELL_SECONDS
        self._untrimmed, self._trimmed_at = 0, 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        looked_at, rested_at, count = -_LOOK_SECONDS, 0.0, 0
        with ThreadPoolExecutor(1, thread_name_prefix="connections") as thread:
            while True:
                now, before = time.monotonic(), count
                count = _descriptors()
                is_due = now - looked_at >= (_LOOK_SECONDS if count else _UNCOUNTED_SECONDS)
                if now >= rested_at and (is_due or abs(count - before) >= _BURST):
                    await self._look(thread, now)
                    looked_at = now
                    rested_at = now + _REST * (time.monotonic() - now)
                else:
                    count = before
                await asyncio.sleep(_COUNT_SECONDS)

    async def _look(self, thread: ThreadPoolExecutor, began: float) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(thread, self._scanner.look)
        now = time.monotonic()
        due: list[Accepted] = []
        for ports, judge in self._judges:
            due += judge([one for one in found if one.port in ports], began, now)
        if due:
            self._tell(await loop.run_in_executor(thread, shut_down, due), now)
        elif self._untrimmed >= _MANY and now - self._trimmed_at >= _LOOK_SECONDS:
            self._untrimmed, self._trimmed_at = 0, now
            await loop.run_in_executor(thread, process.give_memory_back)

    def _tell(self, count: int, now: float) -> None:
        self._closed(count)
        self._untold += count
        self._untrimmed += count
        if now - self._told_at >= _TELL_SECONDS:
            log.warning("connections closed that had made no call", extra={"connections": self._untold})
            self._untold, self._told_at = 0, now


def _descriptors() -> int:
    """How many descriptors this process has; 0 where Linux does not count them."""
    return os.stat(_DESCRIPTORS).st_size


def _socket_of(descriptor: int) -> socket.socket:
    """A socket on a descriptor of our own: gRPC may close its, and the number may stand for another connection then.

    Raises:
        OSError, ValueError: the descriptor was closed, or is no socket's.
    """
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise ValueError("no socket")
    return socket.socket(fileno=os.dup(descriptor))


def _from(callers: Iterable[str]) -> Iterator[tuple[str, socket.socket]]:
    """The connections of those who are found, each open as long as it is looked at."""
    wanted = {address: caller for caller in callers if (address := address_of(caller)) is not None}
    for name in os.listdir(_DESCRIPTORS) if wanted else ():
        # It may be closed by now, or be no connection.
        with contextlib.suppress(OSError, ValueError), _socket_of(int(name)) as connection:
            host, port = connection.getpeername()[:2]
            if (caller := wanted.get((host.removeprefix("::ffff:"), port))) is not None:
                yield caller, connection


def _acknowledged_bytes(connection: socket.socket) -> int:
    """What the other end's kernel has taken: tcpi_bytes_acked of Linux's struct tcp_info."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.stop)
    return int.from_bytes(info[_ACKNOWLEDGED], sys.byteorder)


def address_of(caller: str) -> tuple[str, int] | None:
    """The address that a caller's, as gRPC writes it, stands for; None for a socket's."""
    kind, _, address = caller.partition(":")
    host, _, port = address.replace("%5B", "[").replace("%5D", "]").rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]").partition("%")[0].removeprefix("::ffff:"), int(port)
