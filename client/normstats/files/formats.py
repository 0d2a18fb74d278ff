"""Which format a file has: its name says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normstats.files.base import FileError, Source, Target
from normstats.files.npy import NpySource, NpyTarget, NpzTarget

__all__ = ["FileError", "Source", "Target", "open_source", "open_target"]

_SUFFIXES = ".npy, .npz, .csv or .parquet"


def open_source(path: Path, *, member: str | None = None, columns: Sequence[str] | None = None) -> Source:
    """A file as a source of rows.

    Args:
        path: its name's ending says which format it has.
        member: which array of an .npz; the only one by default.
        columns: which columns of a table; all by default.

    Raises:
        FileError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    match path.suffix:
        case ".npy" | ".npz":
            return NpySource(path, member)
        case ".csv" | ".parquet":
            from normstats.files import tables

            return (tables.CsvSource if path.suffix == ".csv" else tables.ParquetSource)(path, columns)
    raise FileError(f"{path}: expected a name that ends in {_SUFFIXES}")


def open_target(path: Path) -> Target:
    """A file to write rows to.

    Raises:
        FileError: there is no such format, or no such folder.
    """
    if not path.parent.is_dir():
        raise FileError(f"there is no folder {path.parent}")
    match path.suffix:
        case ".npy":
            return NpyTarget(path)
        case ".npz":
            return NpzTarget(path)
        case ".csv" | ".parquet":
            from normstats.files import tables

            return tables.TableTarget(path)
    raise FileError(f"{path}: expected a name that ends in {_SUFFIXES}")
