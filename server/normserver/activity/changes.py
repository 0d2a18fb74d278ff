"""Which normalizers changed last. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import nlargest
from weakref import ref

from normserver.records import Head, Record

CAPACITY = 1000


class Changes:
    """The newest version of those normalizers that were looked at or changed last.

    Statistics stay in memory no longer for it: a record that is dropped elsewhere before it is taken is left out.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._fresh: OrderedDict[str, ref[Record]] = OrderedDict()

    def note(self, record: Record) -> None:
        """A normalizer is at this version."""
        known = self._heads.get(record.name)
        if known is not None and (known.version, known.created_at) == (record.version, record.created_at):
            return
        _put(self._heads, record.name, record.head, self._capacity)
        _put(self._fresh, record.name, ref(record), self._capacity)

    def forget(self, name: str) -> None:
        """There is no such normalizer any more."""
        self._heads.pop(name, None)
        self._fresh.pop(name, None)

    def last(self, wanted: Callable[[str], bool], limit: int) -> list[Head]:
        """Those that are wanted, the last changed first."""
        found = (head for head in self._heads.values() if wanted(head.name))
        return nlargest(limit, found, key=lambda head: head.updated_at)

    def take(self, limit: int) -> list[Record]:
        """Some of what is new since it was last taken, the oldest first."""
        taken = [self._fresh.popitem(last=False)[1]() for _ in range(min(limit, len(self._fresh)))]
        return [record for record in taken if record is not None]


def _put(entries: OrderedDict, name: str, value: object, capacity: int) -> None:  # type: ignore[type-arg]
    entries[name] = value
    entries.move_to_end(name)
    if len(entries) > capacity:
        entries.popitem(last=False)
