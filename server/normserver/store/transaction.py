"""The statements of a transaction, in SQLAlchemy Core: the same for every database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from normserver.producers import Window
from normserver.records import Record, SnapshotRecord
from normserver.store import rows
from normserver.store.schema import normalizers, producers, snapshots

T = TypeVar("T")

# How many values one IN list may have: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_IN_LIST = 1000


def _put_window(statement: Any) -> Any:
    new = statement.excluded
    values = {"highest": new.highest, "seen": new.seen, "used_at": new.used_at}
    return statement.on_conflict_do_update(index_elements=[producers.c.producer], set_=values)


_PUT_WINDOW = {"sqlite": _put_window(sqlite.insert(producers)), "postgresql": _put_window(postgresql.insert(producers))}


class SqlTransaction:
    """A transaction on an open connection. See store.base.Transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def records(self, names: Collection[str]) -> dict[str, Record]:
        """Those normalizers that exist, locked in the order of their names."""
        found: dict[str, Record] = {}
        for some in _slices(sorted(names)):
            query = (
                select(normalizers).where(normalizers.c.name.in_(some)).order_by(normalizers.c.name).with_for_update()
            )
            found |= {row.name: rows.record_of(row) for row in self._connection.execute(query)}
        return found

    def page(self, prefix: str, after: str, limit: int) -> Sequence[Record]:
        """Normalizers in the order of their names."""
        query = select(normalizers).where(normalizers.c.name > after)
        if prefix:
            # A range, not LIKE: it uses the primary key, and no character has a meaning of its own.
            query = query.where(normalizers.c.name >= prefix, normalizers.c.name < _after_prefix(prefix))
        query = query.order_by(normalizers.c.name).limit(limit)
        return [rows.record_of(row) for row in self._connection.execute(query)]

    def insert(self, record: Record) -> None:
        """Add a normalizer."""
        self._connection.execute(insert(normalizers), rows.row_of(record))

    def update(self, records: Sequence[Record]) -> None:
        """Write normalizers."""
        if records:
            statement = update(normalizers).where(normalizers.c.name == bindparam("key"))
            values = [rows.row_of(record) for record in records]
            self._connection.execute(statement, [{"key": row.pop("name"), **row} for row in values])

    def delete(self, name: str) -> None:
        """Delete a normalizer and its snapshots."""
        self._connection.execute(delete(snapshots).where(snapshots.c.normalizer == name))
        self._connection.execute(delete(normalizers).where(normalizers.c.name == name))

    def windows(self, ids: Collection[bytes]) -> dict[bytes, Window]:
        """The windows of those producers that are remembered."""
        found: dict[bytes, Window] = {}
        for some in _slices(sorted(ids)):
            query = (
                select(producers).where(producers.c.producer.in_(some)).order_by(producers.c.producer).with_for_update()
            )
            found |= {row.producer: Window.from_bytes(row.highest, row.seen) for row in self._connection.execute(query)}
        return found

    def put_windows(self, windows: Mapping[bytes, Window], now: float) -> None:
        """Remember producers' windows."""
        if windows:
            rows = [_window_row(producer, windows[producer], now) for producer in sorted(windows)]
            self._connection.execute(_PUT_WINDOW[self._connection.dialect.name], rows)

    def forget_producers(self, idle_since: float) -> int:
        """Forget the producers that were last used before that time."""
        return self._connection.execute(delete(producers).where(producers.c.used_at < idle_since)).rowcount

    def snapshot(self, name: str, tag: str) -> SnapshotRecord | None:
        """One snapshot."""
        query = select(snapshots).where(snapshots.c.normalizer == name, snapshots.c.tag == tag)
        row = self._connection.execute(query).one_or_none()
        return None if row is None else rows.snapshot_of(row)

    def snapshots(self, name: str, after: str, limit: int) -> Sequence[SnapshotRecord]:
        """Snapshots in the order of their tags."""
        query = (
            select(snapshots)
            .where(snapshots.c.normalizer == name, snapshots.c.tag > after)
            .order_by(snapshots.c.tag)
            .limit(limit)
        )
        return [rows.snapshot_of(row) for row in self._connection.execute(query)]

    def insert_snapshot(self, snapshot: SnapshotRecord) -> None:
        """Add a snapshot."""
        self._connection.execute(insert(snapshots), rows.snapshot_row(snapshot))

    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot."""
        self._connection.execute(delete(snapshots).where(snapshots.c.normalizer == name, snapshots.c.tag == tag))


def _slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _IN_LIST):
        yield values[start : start + _IN_LIST]


def _after_prefix(prefix: str) -> str:
    """The least string that is greater than every string with this prefix (names are ASCII)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _window_row(producer: bytes, window: Window, now: float) -> dict[str, Any]:
    return {"producer": producer, "highest": window.highest, "seen": window.to_bytes(), "used_at": now}
