"""Connections that read a store which no server works on, or one that servers share, as of one commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from normserver.store.base import StoreError, StoreUnavailable


@contextmanager
def sqlite_file(path: Path) -> Iterator[Connection]:
    """A connection to a file that is changed by nobody, itself included.

    Only what a server that was killed left in the log beside it is copied into it first, as the next server would do.

    Raises:
        StoreError: there is no such file.
        StoreUnavailable: it cannot be read.
    """
    if not path.is_file():
        raise StoreError(f"there is no file {path}")
    try:
        with closing(_opened(path)) as opened:
            engine = create_engine("sqlite://", creator=lambda: opened, poolclass=StaticPool)
            with engine.connect() as connection:
                yield connection
    except (DBAPIError, sqlite3.Error) as error:
        raise StoreUnavailable(f"{path}: {error.orig if isinstance(error, DBAPIError) else error}") from error


def driver_of(connection: Connection) -> sqlite3.Connection:
    """SQLite's own connection below one of these."""
    driver: Any = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _opened(path: Path) -> sqlite3.Connection:
    log = Path(f"{path}-wal")
    if not log.exists() or not log.stat().st_size:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # with the log's index in memory: no third file
    connection.execute("PRAGMA query_only=ON")
    return connection


@contextmanager
def postgresql(url: URL) -> Iterator[Connection]:
    """A connection that sees a database as of one commit, and writes nothing.

    Raises:
        StoreUnavailable: it cannot be reached.
    """
    engine = create_engine(url.set(drivername="postgresql+psycopg"), connect_args={"application_name": "normstats"})
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        with engine.connect().execution_options(**options) as connection:
            yield connection
    except (DBAPIError, OSError) as error:
        told = error.orig if isinstance(error, DBAPIError) else error
        raise StoreUnavailable(f"{url.render_as_string()}: {str(told).strip()}") from error
    finally:
        engine.dispose()
