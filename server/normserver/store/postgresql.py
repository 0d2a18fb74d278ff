"""PostgreSQL: as many servers as one likes on one database, each with a connection that works and one that listens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import psycopg
from psycopg import errors
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from normserver.store.base import NoCopies, StoreUnavailable, TryAgain
from normserver.store.migrate import Attached, attach, replaced
from normserver.store.schema import store
from normserver.store.transaction import CHANGES, SqlTransaction

# Two servers that meet on one row wait for each other; where they cannot, one of them begins again.
_AGAIN = (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation, errors.LockNotAvailable)
# Any number that is ours: taken while tables are made or changed.
_MIGRATION_LOCK = 0x6E6F726D
_CONNECT_SECONDS = 5
_RELISTEN_SECONDS = 0.5
# How soon a listener notices that it is to stop.
_LISTEN_SECONDS = 0.5
# A statement that takes longer has no database behind it any more. The last is for a peer that is gone without a word.
_TIMEOUTS = {
    "connect_timeout": _CONNECT_SECONDS,
    "options": "-c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s",
    "tcp_user_timeout": 10_000,
    "application_name": "normstats",
}


class PostgresStore:
    """A store in PostgreSQL. See store.base.Store."""

    shared = True

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        self._engine: Engine | None = None
        self._listener: _Listener | None = None
        self._uid: str | None = None

    def open(self, *, must_exist: bool = False) -> bool:
        """Connect; make the tables, or bring them up to date, one server at a time."""
        return self._connect(must_exist=must_exist).is_new

    def check(self) -> None:
        """Look whether the database is there, and the same."""
        if self._engine is None:
            return
        with self._failing(), self._engine.begin() as connection:
            found = connection.execute(select(store.c.uid)).scalar_one_or_none()
        if found != self._uid:
            self._disconnect()
            raise replaced(self._name)

    @contextmanager
    def transaction(self) -> Iterator[SqlTransaction]:
        """A transaction. Rows that it reads for writing are locked; a failure drops the connection.

        Raises:
            TryAgain: it met another server's.
        """
        if self._engine is None:
            self._connect()
        assert self._engine is not None
        with self._failing(), self._engine.begin() as connection:
            yield SqlTransaction(connection)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A block that the database may fail in: then the connection is dropped."""
        try:
            yield
        except (DBAPIError, psycopg.Error, OSError) as error:
            if isinstance(error, DBAPIError) and isinstance(error.orig, _AGAIN):
                raise TryAgain(str(error.orig)) from error
            self._disconnect()
            raise StoreUnavailable(self._told(error)) from error

    def copy(self) -> NoReturn:
        """PostgreSQL has tools of its own for it."""
        raise NoCopies

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Hear, on a thread of its own, what other servers commit."""
        self._listener = _Listener(self._url, changed)

    def close(self) -> None:
        """Close both connections."""
        if self._listener is not None:
            self._listener.stop()
        self._disconnect()

    def _connect(self, *, must_exist: bool = False) -> Attached:
        engine = create_engine(self._url, poolclass=StaticPool, connect_args=dict(_TIMEOUTS))
        try:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                attached = attach(connection, self._name, known_uid=self._uid, must_exist=must_exist)
        except (DBAPIError, psycopg.Error, OSError) as error:
            engine.dispose()
            raise StoreUnavailable(self._told(error)) from error
        except BaseException:
            engine.dispose()
            raise
        self._engine, self._uid = engine, attached.uid
        return attached

    def _disconnect(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.dispose()

    @property
    def _name(self) -> str:
        return self._url.set(drivername="postgresql").render_as_string()

    def _told(self, error: Exception) -> str:
        return f"{self._name}: {' '.join(str(error.orig if isinstance(error, DBAPIError) else error).split())}"


class _Listener:
    """The connection that listens. While it is down nobody knows what has changed, so that anything may have."""

    def __init__(self, url: URL, changed: Callable[[Sequence[str]], None]) -> None:
        self._conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._changed = changed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hear no more."""
        self._stopping.set()
        self._thread.join(_CONNECT_SECONDS + 1)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(psycopg.Error, OSError):
                self._hear()
            self._stopping.wait(_RELISTEN_SECONDS)

    def _hear(self) -> None:
        with psycopg.connect(self._conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS) as connection:
            connection.execute(f"LISTEN {CHANGES}")
            self._changed(())
            while not self._stopping.is_set():
                for told in connection.notifies(timeout=_LISTEN_SECONDS):
                    self._changed((told.payload,))
