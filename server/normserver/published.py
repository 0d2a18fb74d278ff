"""What Normalize and watchers read: each normalizer as of its last commit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from normserver.errors import Unavailable, no_such_normalizer
from normserver.records import Record
from normserver.store_thread import StoreThread


class Published:
    """The newest committed records, loaded when first asked for. Lives on the event loop."""

    def __init__(self, store: StoreThread) -> None:
        self._store = store
        self._records: dict[str, Record] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._stopping = False

    async def get(self, name: str) -> Record:
        """A normalizer as of its last commit.

        Raises:
            NotFound: there is none of that name.
            Unavailable: it was not loaded yet, and the store is down.
        """
        if name in self._records:
            return self._records[name]
        found = await self._store.run(lambda transaction: transaction.records((name,)))
        if name not in found:
            raise no_such_normalizer(name)
        # A commit may have published a newer one while this was on its way.
        return self._records.setdefault(name, found[name])

    def publish(self, records: Iterable[Record]) -> None:
        """Make committed records the ones that are read, and wake their watchers."""
        for record in records:
            self._records[record.name] = record
            self._wake(record.name)

    def forget(self, name: str) -> None:
        """A normalizer was deleted: its watchers will find that it is gone."""
        self._records.pop(name, None)
        self._wake(name)

    async def changed(self, seen: Record) -> Record:
        """Wait until a normalizer is no longer as it was seen, and return the newest.

        Raises:
            NotFound: it was deleted.
            Unavailable: the server is stopping.
        """
        while (newest := await self.get(seen.name)) is seen:
            if self._stopping:
                raise Unavailable("the server is stopping; watch again", reason="STOPPING")
            await self._changes.setdefault(seen.name, asyncio.Event()).wait()
        return newest

    def stop(self) -> None:
        """Let every watcher go."""
        self._stopping = True
        for name in list(self._changes):
            self._wake(name)

    def _wake(self, name: str) -> None:
        if (event := self._changes.pop(name, None)) is not None:
            event.set()
