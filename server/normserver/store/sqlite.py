"""SQLite, embedded: one file, one process, one connection, synced to disk at every commit."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from normserver.store import urls
from normserver.store.base import CopyFailed, StoreError, StoreUnavailable
from normserver.store.copying import SteppedCopy
from normserver.store.lock import lock_of
from normserver.store.migrate import Attached, attach, missing, replaced
from normserver.store.transaction import SqlTransaction

# WAL with FULL: a commit is one append and one sync of the log (0.3-0.4 ms here); NORMAL would not sync at all.
# The lock is exclusive and the connection single: SQLite before 3.51.3 may lose a WAL reset between two connections.
_PRAGMAS = ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=0")

# How each of its files begins.
_MAGIC = b"SQLite format 3\0"

_FAILURES = (DBAPIError, sqlite3.Error, OSError)

# A copy's name is the store's, this, and random digits: nobody else's.
_COPY = ".backing-up-"
# What a copy beside the store leaves free for the store itself.
_LEFT_BYTES = 64 << 20


Inode: TypeAlias = tuple[int, int] | None


class SqliteStore:
    """A store in one file. See store.base.Store."""

    shared = False

    def __init__(self, url: URL) -> None:
        self._path = urls.file_of(url)
        self._lock = lock_of(self._path)
        self._engine: Engine | None = None
        self._copy: SteppedCopy | None = None
        self._uid: str | None = None
        self._file: Inode = None  # of the file that was opened, and of the log that the connection writes
        self._log: Inode = None

    def open(self, *, must_exist: bool = False) -> bool:
        """Lock the file, open it, make or check the schema."""
        if not self._path.parent.is_dir():
            raise StoreError(f"there is no folder {self._path.parent}; make it, or give another --store")
        if must_exist and not self._path.exists():
            raise missing(str(self._path))
        self._check_kind()
        self._lock.acquire()
        try:
            self._clear_copies()
            # SQLite would let everybody read a new file; its log takes over the file's mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            return self._connect(must_exist=must_exist).is_new
        except BaseException:
            self._lock.release()
            raise

    def _check_kind(self) -> None:
        """Say what is there, if it is no store; SQLite says that it cannot open it."""
        if self._path.is_dir():
            raise StoreError(f"{self._path} is a folder; --store names a file, such as {self._path / 'normstats.db'}")
        if self._path.exists() and not os.access(self._path, os.R_OK | os.W_OK):
            raise StoreError(f"{self._path} cannot be read and written by this user; give another --store")
        if self._path.exists() and self._path.stat().st_size:
            with self._path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise StoreError(f"{self._path} is no SQLite file, and stays as it is; give another --store")

    def check(self) -> None:
        """Look whether the file is in its place and can be written."""
        if self._engine is None:
            return
        self._check_place()
        if not os.access(self._path, os.W_OK):
            self._disconnect()
            raise StoreUnavailable(f"{self._path} cannot be written any more: it or its file system is read-only")

    @contextmanager
    def transaction(self) -> Iterator[SqlTransaction]:
        """A transaction. After a failure the connection is dropped: a failed sync is never retried on one handle."""
        try:
            with self._connected().begin() as connection:
                yield SqlTransaction(connection)
        except _FAILURES as error:
            self._disconnect()
            raise StoreUnavailable(_told(self._path, error)) from error
        # After the commit, and before anybody is told of it: what was written into a deleted file is lost.
        self._check_place()

    def copy(self) -> SteppedCopy:
        """Begin a copy in a file beside this one, made by the connection itself: no other can read the store."""
        self._abandon_copy()
        try:
            self._check_room()
            pooled = self._connected().raw_connection()
            try:
                source: Any = pooled.driver_connection
            finally:
                pooled.close()
        except _FAILURES as error:
            self._disconnect()
            raise StoreUnavailable(_told(self._path, error)) from error
        path = Path(f"{self._path}{_COPY}{secrets.token_hex(8)}")
        self._copy = SteppedCopy(source, path)
        return self._copy

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Nobody else writes: there is nothing to hear."""

    def close(self) -> None:
        """Close the file and give back the lock."""
        self._disconnect()
        self._lock.release()

    def _check_place(self) -> None:
        """Check that the path still names the file and the log that the connection writes.

        Raises:
            StoreUnavailable: it does not. The connection is closed; the log that was deleted alone is copied into the
                file by that, and the next transaction goes on with a new one.
        """
        if _inode(self._path) != self._file:
            self._disconnect()
            raise replaced(str(self._path))
        if _inode(_log_of(self._path)) != self._log:
            self._disconnect()
            raise StoreUnavailable(f"{_log_of(self._path)} was deleted or replaced while the server runs")

    def _connected(self) -> Engine:
        if self._engine is None:
            if _inode(self._path) != self._file:
                raise replaced(str(self._path))
            self._connect()
        assert self._engine is not None
        return self._engine

    def _connect(self, *, must_exist: bool = False) -> Attached:
        engine = create_engine(
            URL.create("sqlite", database=str(self._path)),
            poolclass=StaticPool,
            connect_args={"check_same_thread": False, "isolation_level": None},
        )
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        try:
            with engine.begin() as connection:
                attached = attach(connection, str(self._path), known_uid=self._uid, must_exist=must_exist)
            _make_durable(engine)
        except _FAILURES as error:
            engine.dispose()
            raise StoreUnavailable(_told(self._path, error)) from error
        except BaseException:
            engine.dispose()
            raise
        self._engine, self._uid = engine, attached.uid
        self._file, self._log = _inode(self._path), _inode(_log_of(self._path))
        return attached

    def _check_room(self) -> None:
        size = sum(path.stat().st_size for path in (self._path, _log_of(self._path)) if path.exists())
        free = shutil.disk_usage(self._path.parent).free
        if free < size + _LEFT_BYTES:
            raise CopyFailed(f"{self._path.parent} has {free} bytes free; a copy takes {size}, and {_LEFT_BYTES} stay")

    def _abandon_copy(self) -> None:
        if self._copy is not None:
            copy, self._copy = self._copy, None
            copy.abandon()

    def _clear_copies(self) -> None:
        """Delete what a process that was killed left of its copies."""
        for left in glob.glob(f"{glob.escape(str(self._path))}{_COPY}*"):
            Path(left).unlink(missing_ok=True)

    def _disconnect(self) -> None:
        self._abandon_copy()  # what is copied stays open, and goes on holding the file
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.dispose()


def _log_of(path: Path) -> Path:
    return Path(f"{path}-wal")


def _inode(path: Path) -> Inode:
    """Which file a path names: its device and inode; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _told(path: Path, error: Exception) -> str:
    return f"{path}: {error.orig if isinstance(error, DBAPIError) else error}"


def _configure(connection: Any, _record: Any) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _make_durable(engine: Engine) -> None:
    """Sync what the log held when it was opened.

    After a failed sync it may hold a transaction that nobody was told of, and that no sync has reached. The retry would
    find it there, have nothing to write, and be acknowledged on the strength of memory alone. To copy the log into the
    file syncs both.
    """
    connection = engine.raw_connection()
    try:
        busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.close()
    if busy:
        raise sqlite3.OperationalError("the log cannot be copied into the file: somebody else reads it")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
