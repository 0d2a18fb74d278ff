"""Which server a group's rounds live on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from normserver.errors import FailedPrecondition, Unavailable, lost_lease
from normserver.records import Lease, LeaseRecord
from normserver.store.base import Transaction
from normserver.store_thread import StoreThread

log = logging.getLogger(__name__)

# A server that dies without a word is replaced after so long; one that lives renews three times as often.
LEASE_SECONDS = 6.0


class Ownership(Protocol):
    """Decides which of several servers on one store runs a group's rounds."""

    async def acquire(self, group: str) -> None:
        """Own a group from now on.

        Raises:
            FailedPrecondition: another server owns it; the error holds its address.
            Unavailable: the store is down.
        """
        ...

    def lease(self, group: str) -> Lease | None:
        """What a commit of this group's must still hold; None where nobody else could.

        Raises:
            Unavailable: another server may own it by now.
        """
        ...

    def release(self, group: str) -> None:
        """Give a group up."""
        ...


class Sole:
    """One server on its store: it owns every group."""

    async def acquire(self, group: str) -> None:
        """See Ownership."""

    def lease(self, group: str) -> Lease | None:
        """See Ownership."""
        return None

    def release(self, group: str) -> None:
        """See Ownership."""


class _Held(NamedTuple):
    lease: Lease
    until: float


class Leases:
    """Ownership by leases in the store, each with a token that every commit is checked against."""

    def __init__(self, store: StoreThread, address: str, lost: Callable[[str], None]) -> None:
        """`address` is where clients reach this server; `lost` is called with a group that is no longer owned."""
        self._store = store
        self._address = address
        self._lost = lost
        self._held: dict[str, _Held] = {}
        self._released: set[str] = set()

    async def acquire(self, group: str) -> None:
        """See Ownership."""
        if group in self._held and self._held[group].until > self._now():
            return
        started = self._now()
        renewed = self._held[group].lease if group in self._held else None
        record = await self._store.run(lambda transaction: self._take(transaction, group, renewed))
        if record.owner != self._address:
            raise FailedPrecondition(
                f"the rounds of group {group!r} are at {record.owner}; join there",
                reason="NOT_OWNER",
                metadata={"owner": record.owner},
            )
        self._held[group] = _Held(record.lease, started + LEASE_SECONDS)
        self._released.discard(group)

    def lease(self, group: str) -> Lease | None:
        """See Ownership."""
        held = self._held.get(group)
        if held is None or held.until <= self._now():
            raise lost_lease(group)
        return held.lease

    def release(self, group: str) -> None:
        """See Ownership."""
        if self._held.pop(group, None) is not None:
            self._released.add(group)

    async def keep(self) -> None:
        """Renew what is held, give up what is released; runs until cancelled."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            with contextlib.suppress(Unavailable):  # the store says so itself when it is down
                await self._renew()
            for group in [group for group, held in self._held.items() if held.until <= self._now()]:
                self._lose(group)

    async def give_up(self) -> None:
        """Give up everything: this server stops, and another may go on at once."""
        self._released |= set(self._held)
        self._held.clear()
        with contextlib.suppress(Unavailable):
            await self._renew()

    async def _renew(self) -> None:
        held, released, started = dict(self._held), set(self._released), self._now()
        if not held and not released:
            return

        def renew(transaction: Transaction) -> list[LeaseRecord]:
            transaction.release_leases(released, self._address)
            return [self._take(transaction, group, held[group].lease) for group in sorted(held)]

        for record in await self._store.run(renew):
            group = record.lease.group
            if record.owner == self._address and record.lease == held[group].lease:
                if group in self._held:
                    self._held[group] = _Held(record.lease, started + LEASE_SECONDS)
            else:
                self._lose(group)
        self._released -= released

    def _take(self, transaction: Transaction, group: str, renewed: Lease | None) -> LeaseRecord:
        return transaction.take_lease(group, self._address, LEASE_SECONDS, renewed)

    def _lose(self, group: str) -> None:
        if self._held.pop(group, None) is not None:
            log.warning("lease lost", extra={"group": group})
            self._lost(group)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
