"""Brings a store's tables to what this release works with."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from normserver.store.base import StoreError


def migrate(connection: Connection, store: str) -> None:
    """Run the migrations that are missing, in the connection's transaction.

    Raises:
        StoreError: the tables are those of a later release.
    """
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(
            f"{store} was written by a later normstats, and this one reads its tables up to version "
            f"{newest_version()}: use the release that wrote it"
        ) from error


def newest_version() -> str | None:
    """The version of the tables that this release works with."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("normserver.store").joinpath("migrations")))
    return config
