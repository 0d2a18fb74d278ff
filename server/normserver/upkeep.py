"""python -m normserver.upkeep: what `normstats verify`, `backup --store` and `restore --backup` run."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from normserver.config import Settings
from normserver.store import reading, urls
from normserver.store.base import CopyFailed, NoCopies, StoreError, StoreUnavailable
from normserver.store.copying import NewFile
from normserver.store.lock import lock_of
from normserver.store.restoring import restore
from normserver.store.verifying import verify


def main(arguments: list[str] | None = None) -> int:
    """Do it; returns the exit code: 0 done and sound, 1 not so, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.work(options))
    except (StoreError, StoreUnavailable, CopyFailed, NoCopies, OSError) as error:
        told = {"code": "FAILED_PRECONDITION", "message": str(error), "field": "", "reason": ""}
        print(json.dumps({"error": told}) if options.json else f"normstats: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="normserver.upkeep", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, work in (("verify", _verify), ("backup", _back_up), ("restore", _restore)):
        command = commands.add_parser(name, help=work.__doc__)
        command.add_argument("file", nargs="?" if work is _verify else None, type=Path)
        command.add_argument("--store", default="")
        command.add_argument("--force", action="store_true")
        command.add_argument("--json", action="store_true")
        command.set_defaults(work=work)
    return parser


def _verify(options: argparse.Namespace) -> int:
    """Look at a backup or a store."""
    subject = str(options.file or _store(options))
    with _file(options.file) if options.file else _opened(_store(options)) as connection:
        report = verify(connection)
    for violation in report.violations:
        value = violation.value
        shown = value if value is None or math.isfinite(value) else str(value)  # JSON has no NaN
        _say(options, violation._asdict() | {"value": shown}, str(violation))
    counts = {"normalizers": report.normalizers, "snapshots": report.snapshots, "producers": report.producers}
    summary = {"schema": report.schema, **counts, "violations": len(report.violations)}
    _say(options, summary, f"{subject}: {report.summary()}")
    return 0 if report.sound else 1


def _back_up(options: argparse.Namespace) -> int:
    """Copy a store that no server works on."""
    url = urls.parse(_store(options))
    if url.drivername != "sqlite":
        raise NoCopies
    file: Path = options.file
    if file.exists() and not options.force:
        raise StoreError(f"{file} is there already; give another name, or --force to replace it")
    store = urls.file_of(url)
    with _locked(store), reading.sqlite_file(store) as connection, NewFile(file) as fresh:
        fresh.fill(reading.driver_of(connection))
        fresh.appear(replace=options.force)
    size, digest = file.stat().st_size, _digest(file)
    _say(
        options, {"file": str(file), "size_bytes": size, "sha256": digest}, f"{file} has all of {store}: {size:,} bytes"
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    """Put a backup in the place of a store."""
    url = urls.parse(_store(options))
    if url.drivername != "sqlite":
        raise NoCopies
    store = urls.file_of(url)
    report, aside = restore(options.file, store, force=options.force)
    kept = f"; what was there is in {aside}" if aside else ""
    told = {"store": str(store), "normalizers": report.normalizers, "kept_as": str(aside) if aside else None}
    _say(options, told, f"{store} has {report.summary()}{kept}")
    return 0


def _store(options: argparse.Namespace) -> str:
    """The store that is named, or else the one that `normstats serve` would take."""
    default: str = Settings.model_fields["store"].default
    return options.store or os.environ.get("NORMSTATS_STORE") or default


@contextmanager
def _opened(store: str) -> Iterator[Connection]:
    url = urls.parse(store)
    if url.drivername != "sqlite":
        with reading.postgresql(url) as connection:
            yield connection
        return
    path = urls.file_of(url)
    with _locked(path), reading.sqlite_file(path) as connection:
        yield connection


@contextmanager
def _file(path: Path) -> Iterator[Connection]:
    """A file, which a server works on if there is a lock beside it."""
    with _locked(path) if Path(f"{path}.lock").exists() else nullcontext(), reading.sqlite_file(path) as connection:
        yield connection


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No server works on a store."""
    if not path.is_file():
        raise StoreError(f"there is no file {path}")
    lock = lock_of(path)
    try:
        lock.acquire()
    except StoreError as error:
        raise StoreError(f"{error}; a server makes a backup itself: normstats --target HOST:PORT backup FILE") from None
    try:
        yield
    finally:
        lock.release()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(options: argparse.Namespace, told: dict[str, Any], line: str) -> None:
    print(json.dumps(told) if options.json else line)


if __name__ == "__main__":
    sys.exit(main())
