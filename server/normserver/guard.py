"""Which connections may stay: those that made a call, within their callers' shares, and a few that have made none yet.

Pure: connections, addresses and times are arguments.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from normserver.access.shares import Shares
from normserver.connections import Accepted, address_of
from normserver.errors import ResourceExhausted

# A silent connection costs up to 90 KiB while it is closed (TLS, measured): 512 of them take less than 48 MiB.
MAX_SILENT = 512
# How long a connection may be open without a call.
SILENT_SECONDS = 60.0


@dataclass(slots=True)
class _Caller:
    """A connection that made a call. `inode` is its socket's, once that was found."""

    holder: str
    address: tuple[str, int]
    since: float
    inode: int = 0


@dataclass(slots=True)
class _Public:
    """Calls for everybody on a connection: how many are open, and when the last began or ended."""

    count: int
    at: float


class ConnectionGuard:
    """Decides which of a listener's connections are closed.

    A connection is silent until the door lets a call of it in that is not for everybody. Silent connections have a
    budget of their own, so that they never take the place of callers; beyond it the oldest of the address that has most
    of them makes room for new ones.
    """

    def __init__(
        self, max_connections: int, *, max_silent: int = MAX_SILENT, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self._max_connections = max_connections
        self._max_silent = max_silent
        self._silent_seconds = silent_seconds
        self._public: dict[tuple[str, int], _Public] = {}
        self._callers: dict[str, _Caller] = {}
        self._shares = Shares()
        self._silent: dict[int, float] = {}  # since when, by inode: the oldest first

    def called(self, caller: str, holder: str, most: int, now: float) -> None:
        """The connection from an address made a call, on behalf of a holder who may have so many connections.

        Raises:
            ResourceExhausted: the holder has as many already, or the server.
        """
        if caller in self._callers or (address := address_of(caller)) is None:
            return
        if len(self._callers) >= self._max_connections:
            raise ResourceExhausted(
                f"{self._max_connections} connections are in use, as many as --max-connections allows; close some",
                reason="CONNECTION_LIMIT",
            )
        if not self._shares.take(holder, most):
            raise ResourceExhausted(
                f"{holder} has {most} connections in use, as many as it may have; close some, or have its "
                "max_connections raised in the credentials file",
                reason="CONNECTION_LIMIT",
            )
        self._callers[caller] = _Caller(holder, address, now)

    def called_publicly(self, caller: str, more: int, now: float) -> None:
        """A call that is for everybody has begun on the connection from an address (1), or has ended (-1).

        The connection stays silent, as far as its budget goes, and is not closed for its age meanwhile.
        """
        if (address := address_of(caller)) is not None:
            one = self._public.setdefault(address, _Public(0, now))
            one.count, one.at = one.count + more, now

    def withdraw(self, holders: Iterable[str]) -> None:
        """Of all callers only these are known any longer: connections of others are silent from now on."""
        kept = set(holders)
        for caller in [name for name, one in self._callers.items() if one.holder not in kept]:
            self._forget(caller)

    def judge(self, found: Sequence[Accepted], began: float, now: float) -> list[Accepted]:
        """Which of the connections that were found are to be closed. `began`: when the search for them did."""
        known = self._known({one.address: one for one in found}, began)
        silent = {one.inode: one for one in found if one.inode not in known}
        since = {inode: at for inode, at in self._silent.items() if inode in silent}
        since.update((inode, now) for inode in silent if inode not in since)
        present = {one.address for one in found}
        self._public = {
            address: one for address, one in self._public.items() if one.count or address in present or one.at >= began
        }
        due = [inode for inode, at in since.items() if self._has_been_silent(silent[inode], at, now)]
        for inode in due:
            del since[inode]
        due += self._in_excess([silent[inode] for inode in since])
        self._silent = {inode: at for inode, at in since.items() if inode not in due}
        return [silent[inode] for inode in due]

    def _has_been_silent(self, one: Accepted, since: float, now: float) -> bool:
        public = self._public.get(one.address)
        if public is not None:
            if public.count:
                return False
            since = max(since, public.at)
        return now - since >= self._silent_seconds

    def _known(self, found: dict[tuple[str, int], Accepted], began: float) -> set[int]:
        """The sockets of callers; those that have closed are forgotten."""
        known = set()
        for caller, one in list(self._callers.items()):
            present = found.get(one.address)
            if present is not None and one.inode in (0, present.inode):
                one.inode = present.inode
                known.add(present.inode)
            elif one.since < began:  # it closed; another may have its address by now
                self._forget(caller)
        return known

    def _in_excess(self, silent: Sequence[Accepted]) -> Iterator[int]:
        """Those beyond the budget: of the address that has most the oldest, until as many are left as there may be."""
        excess = len(silent) - self._max_silent
        if excess <= 0:
            return
        of_host: defaultdict[str, list[int]] = defaultdict(list)
        for one in silent:
            of_host[one.address[0]].append(one.inode)
        kept = _level([len(several) for several in of_host.values()], self._max_silent)
        for several in of_host.values():
            taken = max(0, min(len(several) - kept, excess))
            excess -= taken
            yield from several[:taken]

    def _forget(self, caller: str) -> None:
        self._shares.give(self._callers.pop(caller).holder)


def _level(counts: Sequence[int], room: int) -> int:
    """The most that each may keep, so that all together fit."""
    level, left = 0, Counter(counts)
    more = len(counts)
    while more and more <= room:
        room -= more
        level += 1
        more -= left[level]
    return level
