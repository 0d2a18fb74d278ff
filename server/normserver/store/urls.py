"""What a store's URL names."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from normserver.store.base import StoreError


def parse(url: str) -> URL:
    """The URL of a store, checked; its drivername is sqlite or postgresql.

    Raises:
        StoreError: there is no such kind of store, or what it takes is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number
        shown = re.sub(r":[^:@/]*@", ":***@", url)
        raise StoreError(
            f"--store {shown!r} is no URL, such as sqlite:///normstats.db or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if parsed.drivername == "sqlite":
        return parsed
    if parsed.drivername not in ("postgresql", "postgres"):
        raise StoreError(f"--store {parsed.drivername}: expected sqlite:///PATH or postgresql://HOST/DATABASE")
    try:
        import_module("psycopg")
    except ImportError:
        raise StoreError(f"--store {parsed.drivername} needs psycopg: pip install 'normstats[postgres]'") from None
    return parsed.set(drivername="postgresql")


def file_of(url: URL) -> Path:
    """The file of an SQLite store.

    Raises:
        StoreError: it names none.
    """
    if not url.database or url.database == ":memory:":
        raise StoreError(f"{url} names no file; an SQLite store is sqlite:///PATH (sqlite:////PATH from the root)")
    return Path(url.database).absolute()
