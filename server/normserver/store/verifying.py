"""Reads all of a store, and tells what of it does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DatabaseError

from normserver import invariants
from normserver.invariants import Violation
from normserver.store.migrate import newest_version

# As they stand: neither SQLAlchemy's types nor ours have had a look at them.
_NORMALIZERS = text("SELECT name, spec, version, running, created_at, updated_at FROM normalizers ORDER BY name")
_SNAPSHOTS = text("SELECT normalizer, tag, version, running, created_at FROM snapshots ORDER BY normalizer, tag")
_PRODUCERS = text("SELECT identity, producer_id, highest, seen, used_at FROM producers ORDER BY identity, producer_id")
# Rows that are read at a time: statistics may have megabytes each.
_ROWS = 100


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
    kept: dict[str, invariants.Kept] = {}
    for name, spec, version, running, *times in streaming.execute(_NORMALIZERS):
        report.normalizers += 1
        kept[name] = invariants.kept_by(_bytes(spec), version)
        yield from invariants.of_normalizer(str(name), _bytes(spec), version, running and _bytes(running), times)
    for normalizer, tag, version, running, created_at in streaming.execute(_SNAPSHOTS):
        report.snapshots += 1
        subject = (str(normalizer), str(tag), version, _bytes(running), created_at)
        yield from invariants.of_snapshot(*subject, kept.get(normalizer))
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
