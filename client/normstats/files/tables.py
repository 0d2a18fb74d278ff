"""Tables of numbers, by pyarrow: .csv and .parquet, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from normstats.files.base import Chunk, FileError, rows_per_chunk

_BUFFER_BYTES = 1 << 16
# pyarrow reads up to 32 blocks ahead: 37 MB at the most of a file of 97 MB, against 74 MB with blocks of 4 MiB.
_CSV_BLOCK_BYTES = 1 << 20


class CsvSource:
    """The numeric columns of a .csv file; a row of the file is a row."""

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self._path = path
        try:
            with self._open() as reader:
                self._names = _chosen(path, reader.schema, columns)
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{path}: {error}") from error
        self.rows: int | None = None
        self.row_shape: tuple[int, ...] = (len(self._names),)

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        try:
            with self._open() as reader:
                for batch in reader:
                    yield _matrix(batch, self._names)
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{self._path}: {error}") from error

    def _open(self) -> Any:
        options = pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False)
        return pyarrow.csv.open_csv(self._path, read_options=options)


class ParquetSource:
    """The numeric columns of a .parquet file, or one column of fixed-size lists."""

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self._path = path
        try:
            # A buffer makes pages of a column be read as they are needed, not a whole row group at once.
            self._file = pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{path}: {error}") from error
        schema = self._file.schema_arrow
        self._names = _chosen(path, schema, columns)
        self._list = self._names[0] if pa.types.is_fixed_size_list(schema.field(self._names[0]).type) else None
        width = schema.field(self._list).type.list_size if self._list else len(self._names)
        self.rows: int | None = self._file.metadata.num_rows
        self.row_shape: tuple[int, ...] = (width,)

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        size = rows_per_chunk(8 * self.row_shape[0])
        try:
            for batch in self._file.iter_batches(batch_size=size, columns=self._names, use_threads=False):
                if self._list:
                    flat = batch.column(self._list).flatten().to_numpy(zero_copy_only=False)
                    yield flat.reshape(-1, *self.row_shape)
                else:
                    yield _matrix(batch, self._names)
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{self._path}: {error}") from error


class TableTarget:
    """A .csv or .parquet file with one column per feature."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer: Any = None

    def write(self, chunk: Chunk) -> None:
        """The next rows."""
        columns = chunk.reshape(len(chunk), -1).T
        batch = pa.record_batch(
            [pa.array(np.ascontiguousarray(c)) for c in columns], [str(i) for i in range(len(columns))]
        )
        if self._writer is None:
            kind = pyarrow.csv.CSVWriter if self._path.suffix == ".csv" else pyarrow.parquet.ParquetWriter
            self._writer = kind(self._partial, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        """All rows were written."""
        if self._writer is None:
            raise FileError(f"{self._path}: there are no rows to write; a table needs its columns")
        self._writer.close()
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)


def _chosen(path: Path, schema: Any, columns: Sequence[str] | None) -> list[str]:
    """The columns to read, which must be there and hold numbers."""
    names = list(columns) if columns else list(schema.names)
    for name in names:
        if name not in schema.names:
            raise FileError(f"{path} has no column {name!r}; it has {', '.join(schema.names)}")
        kind = schema.field(name).type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        listed = pa.types.is_fixed_size_list(kind) and len(names) == 1
        if not (numeric or listed or pa.types.is_null(kind)):
            raise FileError(f"{path}: column {name!r} is {kind}, not numbers; choose others with --columns a,b,c")
    if not names:
        raise FileError(f"{path} has no columns")
    return names


def _matrix(batch: Any, names: Sequence[str]) -> Chunk:
    """Columns side by side as float64; what is missing is NaN."""
    columns = [batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return np.column_stack(columns)
