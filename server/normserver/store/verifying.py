"""Reads all of a store, and tells what of it does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DatabaseError

from normserver import invariants
from normserver.invariants import Violation
from normserver.records import PRESENT
from normserver.store.migrate import newest_version

# As they stand: neither SQLAlchemy's types nor ours have had a look at them.
_NORMALIZERS = text(
    "SELECT name, spec, parameters, version, num_rows, num_batches, created_at, updated_at FROM normalizers "
    "ORDER BY name"
)
_SNAPSHOTS = text(
    "SELECT normalizer, tag, version, num_rows, num_batches, created_at FROM snapshots ORDER BY normalizer, tag"
)
_STATISTICS = text("SELECT normalizer, tag, start, running FROM statistics ORDER BY normalizer, tag, start")
_PRODUCERS = text("SELECT identity, producer_id, highest, seen, used_at FROM producers ORDER BY identity, producer_id")
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
    streaming = connection.execution_options(yield_per=_ROWS)
    kept: dict[tuple[str, str], invariants.Kept] = {}
    for name, spec, parameters, version, num_rows, num_batches, *times in streaming.execute(_NORMALIZERS):
        report.normalizers += 1
        kept[name, PRESENT] = invariants.kept_by(_bytes(spec), version, num_rows, num_batches)
        whole = None if parameters is None else _bytes(parameters)
        yield from invariants.of_normalizer(str(name), _bytes(spec), whole, version, times)
    for normalizer, tag, version, num_rows, num_batches, created_at in streaming.execute(_SNAPSHOTS):
        report.snapshots += 1
        present = kept.get((normalizer, PRESENT))
        if present is not None:
            kept[normalizer, tag] = invariants.Kept(version, present.spec, num_rows, num_batches)
        yield from invariants.of_snapshot(str(normalizer), str(tag), version, created_at, present)
    for key, rows in groupby(streaming.execute(_STATISTICS), key=itemgetter(0, 1)):
        pieces = ((start, _bytes(running)) for _, _, start, running in rows)
        yield from invariants.of_statistics(str(key[0]), str(key[1]), pieces, kept.pop(key, None))
    for (name, tag), one in kept.items():
        yield from invariants.of_statistics(name, tag, (), one)
    for identity, producer_id, highest, seen, used_at in streaming.execute(_PRODUCERS):
        report.producers += 1
        yield from invariants.of_window(str(identity), _bytes(producer_id), highest, _bytes(seen), used_at)


def _bytes(value: object) -> bytes:
    """SQLite keeps what it is given, whatever the column's type."""
    return value if isinstance(value, bytes) else str(value).encode()


def _of_pages(connection: Connection) -> Iterator[Violation]:
    """What SQLite's own check says, but that all is well."""
    for (told,) in connection.execute(text("PRAGMA integrity_check")):
        if told != "ok":
            yield _of_database("integrity_check", re.sub(r"\s*\n\s*", "; ", told))


def _of_database(field: str, sentence: str) -> Violation:
    return Violation("database", "itself", field, sentence)
