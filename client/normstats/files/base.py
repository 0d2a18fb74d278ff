"""What every format offers: a source of chunks, and a target that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# About this many bytes are in memory at a time.
CHUNK_BYTES = 4 << 20

Chunk = npt.NDArray[Any]


class FileError(Exception):
    """A file cannot be read or written; the sentence says why, and what to do."""


class Source(Protocol):
    """An array in a file. `rows` is None where only reading to the end would tell."""

    rows: int | None
    row_shape: tuple[int, ...]

    def chunks(self) -> Iterator[Chunk]:
        """The array in order, as chunks of whole rows."""
        ...


class Target(Protocol):
    """A file to be. It appears under its name when it is whole, and not before."""

    def write(self, chunk: Chunk) -> None:
        """The next rows."""
        ...

    def close(self) -> None:
        """All rows were written."""
        ...

    def discard(self) -> None:
        """Leave nothing behind."""
        ...


def rows_per_chunk(row_bytes: int) -> int:
    """How many rows make a chunk."""
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def native(chunk: Chunk) -> Chunk:
    """A chunk in this machine's byte order."""
    return np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("="))
