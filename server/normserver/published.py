"""What Normalize and watchers read: each normalizer as of its last commit."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from normserver import slices
from normserver.activity.changes import Changes
from normserver.errors import Unavailable, no_such_normalizer
from normserver.records import FEATURE_BYTES, PIECE_FEATURES, Initial, Record, parameter_bytes, width_of
from normserver.store_thread import StoreThread

# How old an answer may be where other servers write to the same store, should their notifications be lost.
MAX_AGE_SECONDS = 1.0
# How many normalizers are kept at hand; others are read again when they are asked for.
CAPACITY = 10_000
# What their statistics, their parameters and what watchers are sent may take together. The newest is always kept.
CAPACITY_BYTES = 512 << 20


@dataclass(slots=True)
class _Entry:
    record: Record
    read_at: float
    serialized: bytes = b""

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, give or take a kilobyte."""
        running, spec = self.record.running, self.record.spec
        held = 0 if running is None or isinstance(running, Initial) else FEATURE_BYTES * width_of(spec)
        return held + parameter_bytes(spec) + len(self.serialized)


class Published:
    """The newest committed records, loaded when first asked for. Lives on the event loop."""

    def __init__(
        self,
        store: StoreThread,
        changes: Changes,
        *,
        capacity: int = CAPACITY,
        capacity_bytes: int = CAPACITY_BYTES,
    ) -> None:
        self._store = store
        self._changed = changes
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._serializing = asyncio.Lock()
        self._max_age = MAX_AGE_SECONDS if store.shared else math.inf
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._wanted: dict[str, asyncio.Future[Record]] = {}
        self._loader: asyncio.Task[None] | None = None
        self._changes: dict[str, asyncio.Event] = {}
        self._stopping = False

    async def get(self, name: str) -> Record:
        """A normalizer as of its last commit; of another server's last commit, as of at most a second ago.

        Raises:
            NotFound: there is none of that name.
            Unavailable: it is not at hand, and the store is down.
        """
        if (record := self.peek(name)) is not None:
            return record
        if name not in self._wanted:
            self._wanted[name] = asyncio.get_running_loop().create_future()
            if self._loader is None:
                self._loader = asyncio.create_task(self._load(), name="loader")
        return await asyncio.shield(self._wanted[name])

    def peek(self, name: str) -> Record | None:
        """The same, if it is at hand."""
        entry = self._entries.get(name)
        return entry.record if entry is not None and entry.read_at + self._max_age > self._now() else None

    def at_hand(self, names: Iterable[str]) -> dict[str, Record]:
        """Those of some normalizers that are in memory, however old."""
        return {name: entry.record for name in names if (entry := self._entries.get(name)) is not None}

    async def serialized(self, record: Record, serialize: Callable[[Record], bytes]) -> bytes:
        """What all watchers of a record are sent, made once while it is the newest; of a wide one on a thread."""
        if width_of(record.spec) <= PIECE_FEATURES:
            return self._told(record) or self._tells(record, serialize(record))
        async with self._serializing:  # one at a time: those who wait for the same are told the same
            return self._told(record) or self._tells(record, await asyncio.to_thread(serialize, record))

    def _told(self, record: Record) -> bytes:
        entry = self._entries.get(record.name)
        return b"" if entry is None or entry.record is not record else entry.serialized

    def _tells(self, record: Record, serialized: bytes) -> bytes:
        entry = self._entries.get(record.name)
        if entry is not None and entry.record is record:
            self._put(record.name, _Entry(record, entry.read_at, serialized))
        return serialized

    def publish(self, records: Iterable[Record]) -> None:
        """Make committed records the ones that are read, and wake their watchers."""
        for record in records:
            self._keep(record)
            self._wake(record.name)

    def deleted(self, name: str) -> None:
        """A normalizer was deleted: its watchers will find that it is gone."""
        self._changed.forget(name)
        self._forget(name)

    def outdated(self, names: Sequence[str]) -> None:
        """Other servers may have changed these; all, if none is named."""
        for name in names or list(self._entries):
            self._forget(name)

    async def changed(self, seen: Record) -> Record:
        """Wait until a normalizer is no longer as it was seen, and return the newest.

        Raises:
            NotFound: it was deleted.
            Unavailable: the server is stopping.
        """
        while _same(newest := await self.get(seen.name), seen):
            if self._stopping:
                raise Unavailable("the server is stopping; watch again", reason="STOPPING")
            event = self._changes.setdefault(seen.name, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(self._max_age) else self._max_age):
                    await event.wait()
        return newest

    def stop(self) -> None:
        """Let every watcher go."""
        self._stopping = True
        for name in list(self._changes):
            self._wake(name)

    async def _load(self) -> None:
        """Read what is wanted, all that has gathered in one transaction, until nothing is."""
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            read_at = self._now()
            try:
                found = await slices.records(self._store, tuple(wanted))
            except Exception as error:  # whoever waits is told
                for future in wanted.values():
                    _fail(future, error)
                continue
            for name, future in wanted.items():
                if name in found:
                    future.set_result(self._keep(found[name], read_at))
                else:
                    self._drop(name)
                    self._changed.forget(name)
                    _fail(future, no_such_normalizer(name))
        self._loader = None

    def _keep(self, record: Record, read_at: float | None = None) -> Record:
        """Keep a record, unless a commit has published a newer one while it was on its way; returns the newer."""
        known = self._entries.get(record.name)
        if known is not None and known.record.created_at == record.created_at:
            if known.record.version > record.version:
                return known.record
            if known.record.version == record.version:
                record = known.record
        serialized = known.serialized if known is not None and known.record is record else b""
        self._put(record.name, _Entry(record, self._now() if read_at is None else read_at, serialized))
        self._changed.note(record)
        return record

    def _put(self, name: str, entry: _Entry) -> None:
        self._drop(name)
        self._entries[name] = entry
        self._held_bytes += entry.size_bytes
        while len(self._entries) > 1 and (
            len(self._entries) > self._capacity or self._held_bytes > self._capacity_bytes
        ):
            self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> None:
        if (entry := self._entries.pop(name, None)) is not None:
            self._held_bytes -= entry.size_bytes

    def _forget(self, name: str) -> None:
        self._drop(name)
        self._wake(name)

    def _wake(self, name: str) -> None:
        if (event := self._changes.pop(name, None)) is not None:
            event.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _fail(future: asyncio.Future[Record], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # seen: nobody may be left to await it


def _same(one: Record, other: Record) -> bool:
    """A normalizer that was deleted and made again may have the version that it had."""
    return (one.version, one.created_at) == (other.version, other.created_at)
