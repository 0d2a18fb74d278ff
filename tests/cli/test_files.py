"""Arrays in files: read and written in chunks of whole rows, and never whole."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.lib import format as npy_format

from normstats.files import FileError, open_source, open_target
from normstats.files.base import CHUNK_BYTES

X = np.random.default_rng(11).normal(size=(50, 3))


def saved(folder: Path, x: np.ndarray, suffix: str) -> Path:
    """x in a file, written by somebody else's writer."""
    path = folder / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, x)
    elif suffix == ".npz":
        np.savez_compressed(path, x=x)
    elif suffix == ".csv":
        np.savetxt(path, x, delimiter=",", header=",".join("abcdefgh"[: x.shape[1]]), comments="", fmt="%.17g")
    else:
        columns = {name: x[:, i] for i, name in zip(range(x.shape[1]), "abcdefgh", strict=False)}
        pyarrow.parquet.write_table(pa.table(columns), path)
    return path


SUFFIXES = [".npy", ".npz", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_read_is_what_was_saved(tmp_path: Path, suffix: str) -> None:
    source = open_source(saved(tmp_path, X, suffix))
    assert source.row_shape == (3,)
    assert source.rows in (50, None)
    np.testing.assert_array_equal(np.concatenate(list(source.chunks())), X)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str, rows: int) -> None:
    target = open_target(tmp_path / f"y{suffix}")
    for start in range(0, 50, rows):
        target.write(X[start : start + rows])
    assert not (tmp_path / f"y{suffix}").exists(), "it appears when it is whole"
    target.close()
    source = open_source(tmp_path / f"y{suffix}")
    np.testing.assert_array_equal(np.concatenate(list(source.chunks())), X)
    assert [path.name for path in tmp_path.iterdir()] == [f"y{suffix}"], "nothing else is left behind"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (12,), (0, 5)], ids=["images", "one feature", "no rows"])
def test_arrays_of_any_rank(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=">i2").reshape(shape)
    source = open_source(saved(tmp_path, x, suffix))
    assert (source.rows, source.row_shape) == (shape[0], shape[1:])
    chunks = list(source.chunks())
    np.testing.assert_array_equal(np.concatenate([*chunks, x[:0]]), x)
    assert all(chunk.dtype == np.int16 and chunk.dtype.isnative for chunk in chunks)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpy_reads_what_was_written(tmp_path: Path, suffix: str) -> None:
    target = open_target(tmp_path / f"y{suffix}")
    target.write(X.astype(np.float32))
    target.close()
    loaded = np.load(tmp_path / f"y{suffix}")
    np.testing.assert_array_equal(loaded["arr_0"] if suffix == ".npz" else loaded, X.astype(np.float32))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_a_large_file_is_never_in_memory_whole(tmp_path: Path, suffix: str) -> None:
    x = np.random.default_rng(12).normal(size=(1_000_000, 8))  # 64 MB, 160 MB as text
    path = saved(tmp_path, x, suffix)
    del x
    tracemalloc.start()
    pool = pa.default_memory_pool().bytes_allocated()
    peak, rows = 0, 0
    for chunk in open_source(path).chunks():
        rows += len(chunk)
        peak = max(peak, pa.default_memory_pool().bytes_allocated() - pool)
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 1_000_000
    assert traced < 5 * CHUNK_BYTES
    # pyarrow's own: 32 blocks of a .csv ahead; a page of each column of a .parquet file.
    assert peak < (12 if suffix == ".csv" else 8) * CHUNK_BYTES


def test_a_member_is_chosen_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=X, b=X + 1)
    with pytest.raises(FileError, match="has the members a, b; name one with --member"):
        open_source(tmp_path / "two.npz")
    (chunk,) = open_source(tmp_path / "two.npz", member="b").chunks()
    np.testing.assert_array_equal(chunk, X + 1)


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,a,b\nx,1,2\ny,,4\n")
    with pytest.raises(FileError, match="column 'who' is string, not numbers; choose others with --columns"):
        open_source(tmp_path / "t.csv")
    with pytest.raises(FileError, match="has no column 'c'; it has who, a, b"):
        open_source(tmp_path / "t.csv", columns=["a", "c"])
    (chunk,) = open_source(tmp_path / "t.csv", columns=["b", "a"]).chunks()
    np.testing.assert_array_equal(chunk, [[2, 1], [4, np.nan]])


def test_a_column_of_vectors_is_rows(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 3)
    pyarrow.parquet.write_table(pa.table({"obs": vectors}), tmp_path / "v.parquet")
    source = open_source(tmp_path / "v.parquet")
    assert source.row_shape == (3,)
    np.testing.assert_array_equal(np.concatenate(list(source.chunks())), X)


def write_truncated(path: Path) -> None:
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-100])


def write_objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def write_shape(path: Path, shape: tuple[int, ...]) -> None:
    """17 numbers behind a header that says otherwise."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    whole = npy_format.magic(1, 0) + len(header).to_bytes(2, "little") + header + bytes(8 * 17)
    if path.suffix == ".npy":
        path.write_bytes(whole)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", whole)


BROKEN = {
    "a row of 8 TiB": (
        "x.npy",
        lambda path: write_shape(path, (1, 1 << 40)),
        "136 bytes follow",
    ),
    "the same in a zip": ("x.npz", lambda path: write_shape(path, (1, 1 << 40)), "ends early: .* 136 bytes"),
    "rows without end": ("x.npy", lambda path: write_shape(path, (1 << 80, 17)), "ends early"),
    "fewer rows than none": ("x.npy", lambda path: write_shape(path, (-5, 17)), r"\(-5, 17\); expected .* at least 0"),
    "two minus signs": ("x.npy", lambda path: write_shape(path, (-1, -17)), "at least 0"),
    "nothing of much": ("x.npy", lambda path: write_shape(path, (0, 1 << 62, 8)), "no array of the shape"),
    "too many dimensions": ("x.npy", lambda path: write_shape(path, (17, *[1] * 64)), "no array of the shape"),
    "truncated": ("x.npy", write_truncated, "ends early"),
    "pickles": ("x.npy", write_objects, "holds Python objects"),
    "Fortran order": ("x.npy", lambda path: np.save(path, np.asfortranarray(X)), "Fortran order"),
    "one number": ("x.npy", lambda path: np.save(path, np.float32(1)), "single number"),
    "not .npy": ("x.npy", lambda path: path.write_bytes(b"hello world"), "is no .npy data"),
    "not a zip": ("x.npz", lambda path: path.write_bytes(b"hello world"), "not a zip file"),
    "an empty zip": ("x.npz", lambda path: zipfile.ZipFile(path, "w").close(), "has the members none"),
    "not parquet": ("x.parquet", lambda path: path.write_bytes(b"hello world"), "x.parquet: "),
    "an empty .csv": ("x.csv", lambda path: path.write_bytes(b""), "x.csv: "),
    "ragged .csv": ("x.csv", lambda path: path.write_text("a,b\n1,2\n3\n"), "x.csv: "),
    "another format": ("x.txt", lambda path: path.write_text("1 2"), r"ends in \.npy"),
    "nothing": ("x.npy", lambda path: None, "there is no file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_says_why(tmp_path: Path, case: str) -> None:
    name, write, message = BROKEN[case]
    write(tmp_path / name)
    with pytest.raises(FileError, match=message):
        list(open_source(tmp_path / name).chunks())


@pytest.mark.parametrize("name", ["y.txt", "nowhere/y.npy"])
def test_what_cannot_be_written_says_why(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=r"ends in|no folder"):
        open_target(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_discarded_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    target = open_target(tmp_path / f"y{suffix}")
    target.write(X)
    target.discard()
    assert list(tmp_path.iterdir()) == []
