"""Which normalizers changed last. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import nlargest

from normserver.records import Record

CAPACITY = 1000


class Changes:
    """The newest version of those normalizers that were looked at or changed last."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._fresh: OrderedDict[str, Record] = OrderedDict()

    def note(self, record: Record) -> None:
        """A normalizer is at this version."""
        known = self._records.get(record.name)
        if known is not None and (known.version, known.created_at) == (record.version, record.created_at):
            return
        for records in (self._records, self._fresh):
            records[record.name] = record
            records.move_to_end(record.name)
            if len(records) > self._capacity:
                records.popitem(last=False)

    def forget(self, name: str) -> None:
        """There is no such normalizer any more."""
        self._records.pop(name, None)
        self._fresh.pop(name, None)

    def last(self, wanted: Callable[[str], bool], limit: int) -> list[Record]:
        """Those that are wanted, the last changed first."""
        found = (record for record in self._records.values() if wanted(record.name))
        return nlargest(limit, found, key=lambda record: record.updated_at)

    def take(self, limit: int) -> list[Record]:
        """Some of what is new since it was last taken, the oldest first."""
        return [self._fresh.popitem(last=False)[1] for _ in range(min(limit, len(self._fresh)))]
