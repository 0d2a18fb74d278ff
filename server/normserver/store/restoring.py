"""Puts a backup in the place of an SQLite store that no server works on."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from sqlalchemy import func, select

from normserver.store.base import StoreError, StoreUnavailable
from normserver.store.copying import NewFile
from normserver.store.lock import locked
from normserver.store.reading import driver_of, sqlite_file
from normserver.store.schema import normalizers
from normserver.store.verifying import Report, verify


def restore(backup: Path, store: Path, *, force: bool) -> tuple[Report, Path | None]:
    """Make `store` what `backup` is. Returns what that is, and where the store that was there is now, if one was.

    Raises:
        StoreError: the backup is not sound; the store is there, and `force` is not given; a server works on either.
        StoreUnavailable: the backup cannot be read.
        CopyFailed, OSError: the store cannot be written.
    """
    if not store.parent.is_dir():
        raise StoreError(f"there is no folder {store.parent}; make it, or restore to another")
    if store.exists() and backup.exists() and store.samefile(backup):
        raise StoreError(f"{backup} is the store itself")
    of_a_store = Path(f"{backup}.lock").exists()
    with locked(store), locked(backup) if of_a_store else nullcontext(), sqlite_file(backup) as source:
        report = verify(source)
        if not report.sound:
            raise StoreError(f"{backup} is not sound, and not restored ({report.summary()}): {report.violations[0]}")
        aside = _room_for(store, force=force) if store.exists() else None
        with NewFile(store) as fresh:
            fresh.fill(driver_of(source))
            if aside is not None:
                os.link(store, aside)
            _move_log(store, aside)
            fresh.appear(replace=aside is not None)
    return report, aside


def _room_for(store: Path, *, force: bool) -> Path:
    """Where to keep the store that is there.

    Raises:
        StoreError: it is to stay where it is.
    """
    held = _held(store)
    aside = Path(f"{store}.before-restore")
    if not force:
        raise StoreError(f"{store} is there, with {held}; --force keeps it as {aside}, and replaces it")
    if aside.exists():
        raise StoreError(f"{aside} is there from an earlier restore; move it away first")
    return aside


def _held(store: Path) -> str:
    """What a store has. To open it also brings what a server that was killed left in its log into it."""
    try:
        with sqlite_file(store) as connection:
            count = connection.execute(select(func.count()).select_from(normalizers)).scalar_one()
            return f"{count:,} normalizers"
    except StoreUnavailable as error:
        return f"something that cannot be read ({error})"


def _move_log(store: Path, aside: Path | None) -> None:
    """The log of the store that was there must not become the new one's."""
    log = Path(f"{store}-wal")
    if aside is not None and log.exists():
        log.replace(f"{aside}-wal")
    log.unlink(missing_ok=True)
    Path(f"{store}-shm").unlink(missing_ok=True)
