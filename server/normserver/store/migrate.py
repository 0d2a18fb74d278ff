"""Brings a store's tables to what this release works with."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, select

from normserver.store.base import StoreError, StoreUnavailable
from normserver.store.schema import store


class Attached(NamedTuple):
    """Which store a connection reaches: a text drawn when its tables were made, and whether that was just now."""

    uid: str
    is_new: bool


def attach(connection: Connection, name: str, *, known_uid: str | None = None, must_exist: bool = False) -> Attached:
    """Make a store's tables or bring them up to date, in the connection's transaction.

    Args:
        connection: a connection in a transaction.
        name: the store's, for errors.
        known_uid: of the store that an earlier connection reached; another is refused.
        must_exist: refuse to make the tables of a new store.

    Raises:
        StoreError: the tables are those of a later release; there are none, and they must exist.
        StoreUnavailable: it is another store than the known one.
    """
    found = uid_of(connection)
    if known_uid not in (None, found):
        raise replaced(name)
    if must_exist and found is None:
        raise missing(name)
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(
            f"{name} was written by a later normstats, and this one reads its tables up to version "
            f"{newest_version()}: use the release that wrote it"
        ) from error
    return Attached(found or connection.execute(select(store.c.uid)).scalar_one(), found is None)


def uid_of(connection: Connection) -> str | None:
    """Return which store this is; None if it has no tables."""
    if not inspect(connection).has_table(store.name):
        return None
    return str(connection.execute(select(store.c.uid)).scalar_one())


def missing(name: str) -> StoreError:
    """The error where a store must exist."""
    return StoreError(
        f"there is no store at {name}, and --store-must-exist asks for one: mount or restore it, or leave out that "
        "flag once to begin with an empty store"
    )


def replaced(name: str) -> StoreUnavailable:
    """The error where a store was replaced."""
    return StoreUnavailable(
        f"{name} was deleted or replaced while the server runs: bring back the store that the server started with, or "
        "restart the server to work with what is there now"
    )


def newest_version() -> str | None:
    """The version of the tables that this release works with."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("normserver.store").joinpath("migrations")))
    return config
