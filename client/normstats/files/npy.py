"""NumPy's own formats: .npy, and .npz (a zip of those), both streamed; pickles are refused."""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from normstats.files.base import Chunk, FileError, native, rows_per_chunk

_HEADER_BYTES = 128  # as numpy writes for any shape that a file may have: room to put the number of rows in later


class NpySource:
    """An array in a .npy file, or in a member of an .npz file."""

    def __init__(self, path: Path, member: str | None = None) -> None:
        self._path = path
        self._member = _member_of(path, member) if path.suffix == ".npz" else None
        with self._open() as (file, size):
            self._shape, self._dtype = _read_header(file, size, path)
        self.rows: int | None = self._shape[0]
        self.row_shape = self._shape[1:]

    def chunks(self) -> Iterator[Chunk]:
        """The array in order, as chunks of whole rows."""
        row_bytes = math.prod(self.row_shape) * self._dtype.itemsize
        step = rows_per_chunk(row_bytes)
        with self._open() as (file, size):
            _read_header(file, size, self._path)
            for start in range(0, self._shape[0], step):
                count = min(step, self._shape[0] - start)
                data = file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise FileError(f"{self._path} ends early: {self._shape[0]} rows are announced, it is truncated")
                yield native(np.frombuffer(data, self._dtype).reshape(count, *self.row_shape))

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int | None]]:
        """The file or member, and how long it is."""
        try:
            if self._member is None:
                with self._path.open("rb") as file:
                    yield file, _size(file)
            else:
                with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as member:
                    yield member, archive.getinfo(self._member).file_size
        except (OSError, zipfile.BadZipFile) as error:
            raise FileError(f"{self._path}: {error}") from error


class NpyTarget:
    """A .npy file; the number of rows goes into its header at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._file = self._partial.open("wb")
        self._rows = 0
        self._like: Chunk | None = None

    def write(self, chunk: Chunk) -> None:
        """The next rows."""
        if self._like is None:
            self._like = chunk[:0]
            self._file.write(_header(0, self._like))
        self._rows += len(chunk)
        self._file.write(np.ascontiguousarray(chunk).data if chunk.size else b"")

    def close(self) -> None:
        """All rows were written."""
        if self._like is None:
            self.write(np.zeros((0,), np.float32))
        assert self._like is not None
        self._file.seek(0)
        self._file.write(_header(self._rows, self._like))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._finish()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._partial.replace(self._path)


class NpzTarget(NpyTarget):
    """An .npz file with one member, `arr_0`, as numpy names it."""

    def _finish(self) -> None:
        zipped = self._path.with_name(f".{self._path.name}.zip")
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.write(self._partial, "arr_0.npy")
        self._partial.unlink()
        zipped.replace(self._path)


def _read_header(file: IO[bytes], size: int | None, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise FileError(f"{path} is no .npy data: {error}") from error
    if dtype.hasobject:
        raise FileError(f"{path} holds Python objects (pickles), which are not read: save plain numbers")
    if not shape:
        raise FileError(f"{path} holds a single number; expected rows")
    if fortran and len(shape) > 1:
        raise FileError(
            f"{path} is in Fortran order, which cannot be read row by row: np.save(np.ascontiguousarray(x))"
        )
    _check_shape(path, shape, dtype, None if size is None else size - file.tell())
    return shape, dtype


def _check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], found: int | None) -> None:
    """Before anything is allocated by it: a header may say anything. `found` bytes follow it."""
    if min(shape) < 0:
        raise FileError(f"{path} has the shape {shape}; expected dimensions of at least 0. Write it again with np.save")
    announced = math.prod(shape) * dtype.itemsize
    if found is not None and found < announced:
        raise FileError(
            f"{path} ends early: an array of the shape {shape} has {announced} bytes, and {found} bytes follow its "
            "header. It is truncated or its header is wrong: write it again with np.save"
        )
    try:
        np.empty((0, *shape[1:]), dtype)
    except ValueError:
        raise FileError(f"{path}: numpy has no array of the shape {shape}; write it again with np.save") from None


def _size(file: IO[bytes]) -> int | None:
    """Return the size of a file in bytes; None if it has none, as a pipe."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _member_of(path: Path, wanted: str | None) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(f"{path}: {error}") from error
    if wanted is None and len(members) == 1:
        wanted = members[0]
    if wanted not in members:
        raise FileError(f"{path} has the members {', '.join(members) or 'none'}; name one with --member")
    return f"{wanted}.npy"


def _header(rows: int, like: Chunk) -> bytes:
    """A version 1.0 header of a fixed size."""
    described = {
        "descr": npy_format.dtype_to_descr(like.dtype),
        "fortran_order": False,
        "shape": (rows, *like.shape[1:]),
    }
    text = repr(described).encode("latin1")
    padding = _HEADER_BYTES - len(npy_format.magic(1, 0)) - 2 - len(text) - 1
    assert padding >= 0, "8 dimensions fit"
    body = text + b" " * padding + b"\n"
    return npy_format.magic(1, 0) + len(body).to_bytes(2, "little") + body
