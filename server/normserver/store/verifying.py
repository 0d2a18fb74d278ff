"""Reads all of a store, and tells what of it does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DatabaseError

from normserver import invariants, producers
from normserver.invariants import Violation
from normserver.producers import Producer
from normserver.records import PRESENT
from normserver.store.migrate import attach, newest_version
from normserver.store.rows import checksum, spec_checksum

# As they stand: neither SQLAlchemy's types nor ours have had a look at them.
_NORMALIZERS = text(
    "SELECT name, version, frozen, num_rows, num_batches, created_at, updated_at, creator, stored_bytes, "
    "checksum, spec_checksum, spec, parameters FROM normalizers ORDER BY name"
)
_SNAPSHOTS = text(
    "SELECT normalizer, tag, version, num_rows, num_batches, created_at, creator, stored_bytes, checksum "
    "FROM snapshots ORDER BY normalizer, tag"
)
_STATISTICS = text("SELECT normalizer, tag, start, running, checksum FROM statistics ORDER BY normalizer, tag, start")
_PRODUCERS = text(
    "SELECT identity, producer_id, highest, seen, used_at, checksum FROM producers ORDER BY identity, producer_id"
)
# Rows that are read at a time: pieces of statistics have up to a megabyte each.
_ROWS = 16


@dataclass(slots=True)
class Report:
    """What was read, and what of it does not hold."""

    schema: str | None = None
    normalizers: int = 0
    snapshots: int = 0
    producers: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all of it holds."""
        return not self.violations

    def summary(self) -> str:
        """All of it in a line, for people."""
        read = f"{self.normalizers:,} normalizers, {self.snapshots:,} snapshots, {self.producers:,} producers"
        return f"{read}; {'all sound' if self.sound else f'{len(self.violations):,} violations'}"


def verify(connection: Connection) -> Report:
    """Look at everything. A database that cannot be read is a violation as well."""
    report = Report()
    try:
        for violation in _found(connection, report):
            report.violations.append(violation)
    except DatabaseError as error:
        report.violations.append(_of_database("file", f"cannot be read: {error.orig}"))
    return report


def _found(connection: Connection, report: Report) -> Iterator[Violation]:
    if connection.dialect.name == "sqlite":
        yield from _of_pages(connection)
    if not inspect(connection).has_table("alembic_version"):
        yield _of_database("schema", "is missing; expected a store of normstats")
        return
    report.schema = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if report.schema != newest_version():
        yield _of_database("schema", f"is {report.schema}; expected {newest_version()}, which a server brings it to")
        return
    foreign = list(_of_schema(connection))
    yield from foreign
    if any(violation.sentence.startswith("has no table") for violation in foreign):
        return
    streaming = connection.execution_options(yield_per=_ROWS)
    kept: dict[tuple[str, str], invariants.Kept] = {}
    changed: list[tuple[str, str]] = []  # rows that are not what was written
    for row in streaming.execute(_NORMALIZERS):
        report.normalizers += 1
        spec, whole = _bytes(row.spec), None if row.parameters is None else _bytes(row.parameters)
        kept[row.name, PRESENT] = invariants.kept_by(spec, row.version, row.num_rows, row.num_batches)
        counts, times = (row.num_rows, row.num_batches), (row.created_at, row.updated_at)
        yield from invariants.of_normalizer(str(row.name), spec, whole, row.version, times)
        now = checksum(row.name, row.version, bool(row.frozen), *counts, *times, row.creator, row.stored_bytes)
        if (now, spec_checksum(spec, whole)) != (row.checksum, row.spec_checksum):
            changed.append(("normalizer", str(row.name)))
    for *values, written in streaming.execute(_SNAPSHOTS):
        report.snapshots += 1
        normalizer, tag, version, num_rows, num_batches, created_at, *_ = values
        present = kept.get((normalizer, PRESENT))
        if present is not None:
            kept[normalizer, tag] = invariants.Kept(version, present.spec, num_rows, num_batches)
        yield from invariants.of_snapshot(str(normalizer), str(tag), version, created_at, present)
        if checksum(*values) != written:
            changed.append(("snapshot", f"{normalizer}@{tag}"))
    for key, rows in groupby(streaming.execute(_STATISTICS), key=itemgetter(0, 1)):
        pieces = ((start, _bytes(running), written) for _, _, start, running, written in rows)
        yield from invariants.of_statistics(str(key[0]), str(key[1]), pieces, kept.pop(key, None))
    for (name, tag), one in kept.items():
        yield from invariants.of_statistics(name, tag, (), one)
    for identity, producer_id, highest, seen, used_at, written in streaming.execute(_PRODUCERS):
        report.producers += 1
        producer, bits = Producer(str(identity), _bytes(producer_id)), _bytes(seen)
        yield from invariants.of_window(*producer, highest, bits, used_at)
        if producers.checksum(producer, highest, bits, used_at) != written:
            changed.append(("producer", f"{producer.identity} {producer.id.hex()}"))
    known = {(violation.kind, violation.name) for violation in report.violations}
    for kind, name in changed:
        if (kind, name) not in known:  # else it is known what is wrong with it
            yield invariants.bits_changed(kind, name)


def _bytes(value: object) -> bytes:
    """SQLite keeps what it is given, whatever the column's type."""
    return value if isinstance(value, bytes) else str(value).encode()


def _of_pages(connection: Connection) -> Iterator[Violation]:
    """What SQLite's own check says, but that all is well."""
    for (told,) in connection.execute(text("PRAGMA integrity_check")):
        if told != "ok":
            yield _of_database("integrity_check", re.sub(r"\s*\n\s*", "; ", told))


def _of_schema(connection: Connection) -> Iterator[Violation]:
    """Tables, indexes, views and triggers that normstats does not make, or that are missing or changed."""
    if connection.dialect.name != "sqlite":
        for name, table in connection.execute(_POSTGRESQL_TRIGGERS):
            yield _of_database("schema", f"has a trigger {name!r} on {table!r}; expected none")
        return
    found, expected = _objects(connection), _expected_objects()
    for kind, name in sorted(found.keys() - expected.keys()):
        yield _of_database("schema", f"has a {kind} {name!r}; expected none of that name")
    for kind, name in sorted(expected.keys() - found.keys()):
        if kind == "table" or ("table", expected[kind, name][0]) in found:  # else it went with its table
            yield _of_database("schema", f"has no {kind} {name!r}")
    for key in sorted(found.keys() & expected.keys()):
        if found[key] != expected[key]:
            yield _of_database("schema", f"has a {key[0]} {key[1]!r} that was changed; expected {expected[key][1]}")


_Objects = dict[tuple[str, str], tuple[str, str]]


def _objects(connection: Connection) -> _Objects:
    """The table and the statement of each object in an SQLite database, by kind and name. SQLite's own are left out."""
    rows = connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return {(kind, name): (table, " ".join(sql.split())) for kind, name, table, sql in rows}


@cache
def _expected_objects() -> _Objects:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            attach(connection, "memory")
            return _objects(connection)
    finally:
        engine.dispose()


_POSTGRESQL_TRIGGERS = text(
    "SELECT tgname, relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
    "WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace ORDER BY 1"
)


def _of_database(field: str, sentence: str) -> Violation:
    return Violation("database", "itself", field, sentence)
