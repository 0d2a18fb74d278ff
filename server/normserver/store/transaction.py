"""The statements of a transaction, in SQLAlchemy Core: the same for every database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from normserver import codec
from normserver.producers import Producer, Window, checksum
from normserver.records import PRESENT, Head, Lease, LeaseRecord, Record, SnapshotHead, Usage
from normserver.store import rows
from normserver.store.schema import leases, normalizers, producers, snapshots, statistics
from normstats.specs import Spec

T = TypeVar("T")

# How many values one IN list may have: SQLite takes 32,766 parameters, PostgreSQL 65,535.
_IN_LIST = 1000


def _put_window(statement: Any) -> Any:
    new = statement.excluded
    values = {"highest": new.highest, "seen": new.seen, "used_at": new.used_at, "checksum": new.checksum}
    return statement.on_conflict_do_update(index_elements=[producers.c.identity, producers.c.producer_id], set_=values)


_PUT_WINDOW = {"sqlite": _put_window(sqlite.insert(producers)), "postgresql": _put_window(postgresql.insert(producers))}


_ADVANCED = ("version", "updated_at", "num_rows", "num_batches", "checksum")
_ADVANCE = (
    update(normalizers)
    .where(normalizers.c.name == bindparam("key"))
    .values({name: bindparam(f"new_{name}") for name in _ADVANCED})
)


def _put_piece(statement: Any) -> Any:
    keys = [statistics.c.normalizer, statistics.c.tag, statistics.c.start]
    new = statement.excluded
    return statement.on_conflict_do_update(index_elements=keys, set_={"running": new.running, "checksum": new.checksum})


_PUT_PIECE = {"sqlite": _put_piece(sqlite.insert(statistics)), "postgresql": _put_piece(postgresql.insert(statistics))}
# What a list shows. Arrays of parameters are not among it.
_LISTED = [column for column in normalizers.c if not column.name.endswith(("bytes", "checksum", "parameters"))]
_HEAD = [*_LISTED, normalizers.c.parameters]

CHANGES = "normstats_changes"
_NOTIFY = text(f"SELECT pg_notify('{CHANGES}', :name)")
_LOCK_CREATOR = text("SELECT pg_advisory_xact_lock(hashtextextended(:creator, 0))")
_PROBE = text("UPDATE alembic_version SET version_num = version_num")
_NOW = {
    "sqlite": text("SELECT (julianday('now') - 2440587.5) * 86400.0"),
    "postgresql": text("SELECT extract(epoch FROM clock_timestamp())::float8"),
}


class SqlTransaction:
    """A transaction on an open connection. See store.base.Transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self._inserted: set[Producer] = set()

    def heads(self, names: Collection[str]) -> dict[str, Head]:
        """Those normalizers that exist, without their statistics."""
        return self._heads(names, select(*_HEAD))

    def lock_heads(self, names: Collection[str]) -> dict[str, Head]:
        """The same, nobody else's to write until the transaction ends."""
        return self._heads(names, select(*_HEAD).with_for_update())

    def records(self, names: Collection[str]) -> dict[str, Record]:
        """Those normalizers that exist."""
        return self._with_statistics(self.heads(names))

    def lock_records(self, names: Collection[str], known: Mapping[str, Record]) -> dict[str, Record]:
        """Those normalizers that exist, locked in the order of their names; what is known is not read again."""
        locked: dict[str, Record] = {}
        columns = (normalizers.c.name, normalizers.c.version, normalizers.c.created_at)
        for some in _slices(sorted(names)):
            query = select(*columns).where(normalizers.c.name.in_(some)).order_by(normalizers.c.name)
            for row in self._connection.execute(query.with_for_update()):
                record = known.get(row.name)
                if record is not None and (record.version, record.created_at) == (row.version, row.created_at):
                    locked[row.name] = record
        missing = [name for name in names if name not in locked]
        return locked | self._with_statistics(self.lock_heads(missing))

    def version(self, name: str) -> tuple[int, float] | None:
        """A normalizer's version and the time of its creation; None if there is none."""
        columns = normalizers.c.version, normalizers.c.created_at
        row = self._connection.execute(select(*columns).where(normalizers.c.name == name)).one_or_none()
        return None if row is None else (row.version, row.created_at)

    def piece(self, name: str, tag: str, start: int) -> bytes | None:
        """One piece of statistics; the present ones' with an empty tag."""
        key = statistics.c.normalizer == name, statistics.c.tag == tag, statistics.c.start == start
        piece: bytes | None = self._connection.execute(select(statistics.c.running).where(*key)).scalar_one_or_none()
        return piece

    def _heads(self, names: Collection[str], query: Select[Any]) -> dict[str, Head]:
        found: dict[str, Head] = {}
        for some in _slices(sorted(names)):
            chosen = query.where(normalizers.c.name.in_(some)).order_by(normalizers.c.name)
            found |= {row.name: rows.head_of(row) for row in self._connection.execute(chosen)}
        return found

    def _with_statistics(self, heads: Mapping[str, Head]) -> dict[str, Record]:
        pieces: dict[str, list[bytes]] = {name: [] for name in heads}
        for some in _slices([name for name, head in heads.items() if head.num_features]):
            those = (statistics.c.normalizer.in_(some)) & (statistics.c.tag == PRESENT)
            query = select(statistics.c.normalizer, statistics.c.running).where(those).order_by(statistics.c.start)
            for row in self._connection.execute(query):
                pieces[row.normalizer].append(row.running)
        return {name: Record.of(head, codec.stored(head.spec, head, pieces[name])) for name, head in heads.items()}

    def page(self, prefix: str, after: str, limit: int, contains: str = "") -> Sequence[Head]:
        """Normalizers in the order of their names, as lists show them: without statistics and arrays of parameters."""
        query = select(*_LISTED).where(normalizers.c.name > after, _begins_with(prefix), _has(contains))
        query = query.order_by(normalizers.c.name).limit(limit)
        return [rows.head_of(row) for row in self._connection.execute(query)]

    def count(self, prefixes: Collection[str], contains: str = "") -> int:
        """How many normalizers have a name that begins with any of these, and has `contains`."""
        wanted = or_(false(), *map(_begins_with, prefixes))
        query = select(func.count()).select_from(normalizers).where(wanted, _has(contains))
        return int(self._connection.execute(query).scalar_one())

    def usage(self, creator: str) -> Usage:
        """What an identity has made; nobody else can change that until the transaction ends."""
        if self._dialect == "postgresql":
            self._connection.execute(_LOCK_CREATOR, {"creator": creator})
        count, total = 0, 0
        for table in (normalizers, snapshots):
            columns = func.count(), func.coalesce(func.sum(table.c.stored_bytes), 0)
            made, size = self._connection.execute(select(*columns).where(table.c.creator == creator)).one()
            count, total = count + int(made) * (table is normalizers), total + int(size)
        return Usage(count, total)

    def insert(self, record: Record) -> None:
        """Add a normalizer."""
        self._connection.execute(insert(normalizers), rows.row_of(record.head))
        self._put_pieces((record,))

    def update(self, head: Head) -> None:
        """Write a normalizer's row; its statistics stay."""
        row = rows.row_of(head)
        self._connection.execute(update(normalizers).where(normalizers.c.name == row.pop("name")), row)
        self._tell([head.name])

    def advance(self, records: Sequence[Record]) -> None:
        """Write what commits change of normalizers: statistics, version, time."""
        if records:
            self._connection.execute(_ADVANCE, [rows.advance_of(record) for record in records])
            self._put_pieces(records)
            self._tell([record.name for record in records])

    def _put_pieces(self, records: Iterable[Record]) -> None:
        if pieces := [piece for record in records for piece in rows.pieces_of(record)]:
            self._connection.execute(_PUT_PIECE[self._dialect], pieces)

    def copy_statistics(self, name: str, source: str, target: str) -> None:
        """Make the statistics under one tag those under another; the present ones' tag is empty."""
        self.clear_statistics(name, target)
        said = (statistics.c.start, statistics.c.running, statistics.c.checksum)
        columns = (statistics.c.normalizer, literal(target), *said)
        these = select(*columns).where(statistics.c.normalizer == name, statistics.c.tag == source)
        self._connection.execute(
            insert(statistics).from_select(["normalizer", "tag", "start", "running", "checksum"], these)
        )

    def clear_statistics(self, name: str, tag: str = PRESENT) -> None:
        """Have statistics be as the spec has them at the start."""
        these = (statistics.c.normalizer == name) & (statistics.c.tag == tag)
        self._connection.execute(delete(statistics).where(these))

    def delete(self, name: str) -> None:
        """Delete a normalizer, its statistics and its snapshots."""
        self._tell([name])
        self._connection.execute(delete(statistics).where(statistics.c.normalizer == name))
        self._connection.execute(delete(snapshots).where(snapshots.c.normalizer == name))
        self._connection.execute(delete(normalizers).where(normalizers.c.name == name))

    def windows(self, ids: Collection[Producer]) -> dict[Producer, Window]:
        """The windows of those producers that are remembered, as of now."""
        return self._windows(ids, select(producers))

    def lock_windows(self, ids: Collection[Producer]) -> dict[Producer, Window]:
        """The same, and nobody else's until the transaction ends; also of those that are not remembered yet."""
        locked = select(producers).with_for_update()
        found = self._windows(ids, locked)
        if self._dialect == "postgresql" and (new := [one for one in sorted(ids) if one not in found]):
            # A row that is not there cannot be locked. To insert it waits for whoever else is inserting it just now.
            nothing = [_window_row(producer, Window(), 0.0) for producer in new]
            self._connection.execute(postgresql.insert(producers).on_conflict_do_nothing(), nothing)
            self._inserted.update(new)
            found |= {one: window for one, window in self._windows(new, locked).items() if window != Window()}
        return found

    def _windows(self, ids: Collection[Producer], query: Select[Any]) -> dict[Producer, Window]:
        found: dict[Producer, Window] = {}
        for of_these in _of_producers(ids):
            for row in self._connection.execute(query.where(of_these).order_by(producers.c.producer_id)):
                found[Producer(row.identity, row.producer_id)] = Window.from_bytes(row.highest, row.seen)
        return found

    def put_windows(self, windows: Mapping[Producer, Window], now: float) -> None:
        """Remember producers' windows. New ones that were locked and are not among them stay unknown."""
        self._forget(self._inserted - windows.keys(), producers.c.highest == 0)
        if windows:
            rows = [_window_row(producer, windows[producer], now) for producer in sorted(windows)]
            self._connection.execute(_PUT_WINDOW[self._dialect], rows)

    def forget_producers(self, idle_since: float, limit: int) -> int:
        """Forget producers that were last used before that time, at most `limit`; those in use elsewhere later."""
        is_idle = producers.c.used_at < idle_since
        query = select(producers.c.identity, producers.c.producer_id).where(is_idle).order_by(producers.c.used_at)
        found = self._connection.execute(query.limit(limit).with_for_update(skip_locked=True))
        return self._forget({Producer(*row) for row in found}, is_idle)

    def _forget(self, ids: Collection[Producer], condition: ColumnElement[bool]) -> int:
        count = 0
        for of_these in _of_producers(ids):
            count += self._connection.execute(delete(producers).where(of_these, condition)).rowcount
        return count

    def exchange_retention(self, reading: float) -> float:
        """Keep a reading of the retention clock, if it is the newest; returns the newest."""
        greatest = "max" if self._dialect == "sqlite" else "greatest"
        statement = text(
            f"UPDATE store SET served_seconds = {greatest}(served_seconds, :reading) RETURNING served_seconds"
        )
        return float(self._connection.execute(statement, {"reading": reading}).scalar_one())

    def take_lease(self, group: str, owner: str, seconds: float, renewed: Lease | None) -> LeaseRecord:
        """The lease of a group as it is now: `owner`'s, unless somebody else's still holds."""
        now = self._now()
        found = self._connection.execute(
            select(leases).where(leases.c.group_name == group).with_for_update()
        ).one_or_none()
        # A lease that ends later than any grant could is left from before the database's clock stepped back.
        held = found is not None and now < found.expires_at <= now + 2 * seconds
        if found is not None and found.owner != owner and held:
            return LeaseRecord(Lease(group, found.token), found.owner, found.expires_at - now)
        token = 1 if found is None else found.token + (renewed != Lease(group, found.token))
        values = {"owner": owner, "token": token, "expires_at": now + seconds}
        if found is None:
            self._connection.execute(insert(leases), {"group_name": group, **values})
        else:
            self._connection.execute(update(leases).where(leases.c.group_name == group), values)
        return LeaseRecord(Lease(group, token), owner, seconds)

    def held(self, wanted: Collection[Lease]) -> set[Lease]:
        """Those leases that nobody else was granted since; they stay so until the transaction ends."""
        if not wanted:
            return set()
        groups = sorted({lease.group for lease in wanted})
        query = select(leases.c.group_name, leases.c.token).where(leases.c.group_name.in_(groups))
        rows = self._connection.execute(query.order_by(leases.c.group_name).with_for_update(read=True))
        return {Lease(row.group_name, row.token) for row in rows} & set(wanted)

    def release_leases(self, groups: Collection[str], owner: str) -> None:
        """Give up those of these groups' leases that are `owner`'s."""
        for some in _slices(sorted(groups)):
            mine = (leases.c.group_name.in_(some)) & (leases.c.owner == owner)
            self._connection.execute(update(leases).where(mine), {"expires_at": 0.0})

    def snapshot(self, name: str, tag: str) -> SnapshotHead | None:
        """One snapshot, without its statistics."""
        query = select(snapshots).where(snapshots.c.normalizer == name, snapshots.c.tag == tag)
        row = self._connection.execute(query).one_or_none()
        return None if row is None else rows.snapshot_of(row)

    def snapshots(self, name: str, after: str, limit: int) -> Sequence[SnapshotHead]:
        """Snapshots in the order of their tags."""
        query = (
            select(snapshots)
            .where(snapshots.c.normalizer == name, snapshots.c.tag > after)
            .order_by(snapshots.c.tag)
            .limit(limit)
        )
        return [rows.snapshot_of(row) for row in self._connection.execute(query)]

    def insert_snapshot(self, snapshot: SnapshotHead, spec: Spec, creator: str) -> None:
        """Keep the present statistics of a normalizer of this spec under a tag that is free."""
        self._connection.execute(insert(snapshots), rows.snapshot_row(snapshot, spec, creator))
        self.copy_statistics(snapshot.normalizer, PRESENT, snapshot.tag)

    def probe(self) -> None:
        """Write something that changes nothing."""
        self._connection.execute(_PROBE)

    def oldest_tags(self, name: str, beyond: int) -> Sequence[str]:
        """The tags of all snapshots but so many of the newest."""
        # By version first: the clock may have stepped back, a version never does.
        newest_first = (snapshots.c.version.desc(), snapshots.c.created_at.desc(), snapshots.c.tag.desc())
        query = select(snapshots.c.tag).where(snapshots.c.normalizer == name).order_by(*newest_first)
        return list(self._connection.execute(query).scalars())[beyond:]

    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot."""
        self.clear_statistics(name, tag)
        self._connection.execute(delete(snapshots).where(snapshots.c.normalizer == name, snapshots.c.tag == tag))

    def _tell(self, names: Sequence[str]) -> None:
        """Tell other servers, when this transaction is committed, which normalizers have changed."""
        if self._dialect == "postgresql":
            self._connection.execute(_NOTIFY, [{"name": name} for name in names])

    def _now(self) -> float:
        """The database's time, so that servers' clocks need not agree."""
        return float(self._connection.execute(_NOW[self._dialect]).scalar_one())


def _slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _IN_LIST):
        yield values[start : start + _IN_LIST]


def _of_producers(ids: Collection[Producer]) -> Iterator[ColumnElement[bool]]:
    """Conditions that together select these, in order. One identity each: SQLite scans the table for pairs."""
    for identity, group in groupby(sorted(ids), key=lambda one: one.identity):
        for some in _slices([one.id for one in group]):
            yield and_(producers.c.identity == identity, producers.c.producer_id.in_(some))


def _begins_with(prefix: str) -> ColumnElement[bool]:
    """A range, not LIKE: it uses the primary key, and no character has a meaning of its own."""
    if not prefix:
        return true()
    return and_(normalizers.c.name >= prefix, normalizers.c.name < _after_prefix(prefix))


def _has(contains: str) -> ColumnElement[bool]:
    return normalizers.c.name.icontains(contains, autoescape=True) if contains else true()


def _after_prefix(prefix: str) -> str:
    """The least string that is greater than every string with this prefix (names are ASCII)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _window_row(producer: Producer, window: Window, now: float) -> dict[str, Any]:
    seen = window.to_bytes()
    return {
        "identity": producer.identity,
        "producer_id": producer.id,
        "highest": window.highest,
        "seen": seen,
        "used_at": now,
        "checksum": checksum(producer, window.highest, seen, now),
    }
