"""A copy of an SQLite database in a file of its own, by SQLite's backup."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from normserver.store.base import CopyFailed, StoreUnavailable

# 1 MiB in pages of 4 KiB: a step takes one or two milliseconds, which a commit waits at most.
_PAGES = 256


def copy(source: sqlite3.Connection, path: Path, between_steps: Callable[[], None] = lambda: None) -> None:
    """Copy a database to a new file, which needs no log beside it. It is whole when this returns, and not synced.

    Raises:
        sqlite3.Error, OSError: it could not be read or written.
    """
    path.touch(0o600, exist_ok=False)
    target = sqlite3.connect(path, isolation_level=None)
    try:
        # Nobody has the file before it is whole; whoever keeps it then syncs it once.
        target.execute("PRAGMA journal_mode=OFF")
        target.execute("PRAGMA synchronous=OFF")
        source.backup(target, pages=_PAGES, progress=lambda _, remaining, __: between_steps() if remaining else None)
        target.execute("PRAGMA journal_mode=DELETE")  # the first page says WAL, as the source's does
    finally:
        target.close()


class NewFile:
    """A copy on its way to its place: made beside it, it appears there when it is whole and synced, and not before.

    A context manager, which leaves nothing else behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._partial.unlink(missing_ok=True)

    def fill(self, source: sqlite3.Connection) -> None:
        """Copy a database, and sync the copy.

        Raises:
            CopyFailed: it could not be read or written.
        """
        try:
            copy(source, self._partial)
            _sync(self._partial)
        except (sqlite3.Error, OSError) as error:
            raise CopyFailed(f"{self._path} cannot be written: {error}") from error

    def appear(self, *, replace: bool) -> None:
        """Take the place, of what is there too if `replace` says so.

        Raises:
            FileExistsError: it may not.
        """
        if replace:
            self._partial.replace(self._path)
        else:
            os.link(self._partial, self._path)  # which, unlike a rename, replaces nothing
        _sync(self._path.parent)


class SteppedCopy:
    """A copy of a database that its one connection goes on writing to. See store.base.Copy.

    SQLite's backup calls a function after each step, and begins the next when that returns. Here it runs on a thread of
    its own, where that function waits for the next `step`: so transactions of the same connection come in between.
    SQLite writes what they change to pages that are copied already to the copy as well, so that in the end it is the
    database as of the last of them.
    """

    def __init__(self, source: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._source = source
        self._turn, self._taken = threading.Semaphore(0), threading.Semaphore(0)
        self._over = self._abandoned = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="backup", daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Copy some pages more; whether that was all."""
        if self._abandoned:
            raise StoreUnavailable("the store failed while it was copied")
        if not self._over:
            self._turn.release()
            self._taken.acquire()
        if self._failure is not None:
            self.path.unlink(missing_ok=True)
            raise CopyFailed(str(self._failure)) from self._failure
        return self._over

    def abandon(self) -> None:
        """Copy no more, and leave nothing behind. Nothing, if it is over."""
        if not self._over:
            self._abandoned = True
            self._turn.release()
            self._thread.join()
            self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._abandoned:
                copy(self._source, self.path, self._wait)
        except Exception as error:  # the store's thread tells it
            self._failure = error
        self._over = True
        self._taken.release()

    def _wait(self) -> None:
        self._taken.release()
        self._turn.acquire()
        if self._abandoned:
            raise _Abandoned


class _Abandoned(Exception):
    """Nobody wants the copy any more."""


def _sync(path: Path) -> None:
    """Sync a file, or what a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
