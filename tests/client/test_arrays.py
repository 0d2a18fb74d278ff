"""What callers hand in comes back in kind."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch

import normstats
from normstats.arrays import Output, payload_of
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[normstats.Client]:
    with normstats.connect(server.target) as client:
        yield client


X = np.random.default_rng(6).normal(size=(6, 4)).astype(np.float32)
ROW_NORM = normstats.LpNorm()
EXPECTED = X / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize(
    "x",
    [X, X.astype(">f4"), np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], X.tolist(), X.astype(ml_dtypes.bfloat16)],
    ids=["contiguous", "big-endian", "Fortran order", "strided", "a list", "bfloat16"],
)
def test_numpy_in_numpy_out(client: normstats.Client, x: np.ndarray) -> None:
    y = client.normalize(x, ROW_NORM)
    kept = np.asarray(x).dtype.newbyteorder("=")
    assert isinstance(y, np.ndarray)
    assert (y.dtype, y.shape, y.flags.writeable) == (kept, X.shape, True)
    np.testing.assert_allclose(y.astype(np.float64), EXPECTED, atol=1e-2 if kept.itemsize == 2 else 1e-6)


@pytest.mark.parametrize(
    "x",
    [
        torch.from_numpy(X),
        torch.from_numpy(X).bfloat16(),
        torch.from_numpy(X).requires_grad_(),
        torch.from_numpy(X.T.copy()).T,
    ],
    ids=["float32", "bfloat16", "with a gradient", "transposed"],
)
def test_torch_in_torch_out(client: normstats.Client, x: torch.Tensor) -> None:
    y = client.normalize(x, ROW_NORM)
    assert isinstance(y, torch.Tensor)
    assert (y.dtype, y.shape, y.device) == (x.dtype, x.shape, x.device)
    torch.testing.assert_close(y.double(), torch.from_numpy(EXPECTED), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("x", [np.zeros((0, 4), np.float32), torch.zeros(3, 0)], ids=["no rows", "no columns"])
def test_empty_stays_empty(client: normstats.Client, x: np.ndarray | torch.Tensor) -> None:
    y = client.normalize(x, ROW_NORM)
    assert type(y) is type(x)
    assert y.shape == x.shape


def test_torch_batches_are_contributed_as_numpy_ones_are(client: normstats.Client, name: str) -> None:
    ours = client.create(name, normstats.Standardize(4))
    ours.update(torch.from_numpy(X).bfloat16().requires_grad_())
    rounded = torch.from_numpy(X).bfloat16().double().numpy()
    np.testing.assert_allclose(ours.stats().mean, rounded.mean(axis=0), rtol=1e-14)


@pytest.mark.parametrize(
    ("x", "message"),
    [(np.array(["a"]), "dtype is str"), ([None], "input is no array"), (X.astype(complex), "dtype is complex")],
    ids=["text", "objects", "complex"],
)
def test_what_cannot_travel_is_refused_here(client: normstats.Client, x: object, message: str) -> None:
    with pytest.raises(normstats.InvalidArgument, match=message):
        client.normalize(x, ROW_NORM)


def test_an_output_is_filled_row_by_row() -> None:
    whole = payload_of(X)
    output = Output(whole)
    for start in range(0, 6, 2):
        part = whole.rows(start, start + 2)
        output.add(part.describe(), part.data())
    np.testing.assert_array_equal(output.value(), X)


def test_an_output_that_is_cut_short_is_an_error_and_no_zeros() -> None:
    whole = payload_of(X)
    output = Output(whole)
    with pytest.raises(normstats.Internal, match="has 0 bytes"):
        output.value()
    part = whole.rows(0, 2)
    output.add(part.describe(), part.data())
    with pytest.raises(normstats.Internal, match=rf"has {part.values.nbytes} bytes; expected {X.nbytes}"):
        output.value()


def test_an_output_that_is_too_long_is_an_error() -> None:
    whole = payload_of(X)
    output = Output(whole)
    output.add(whole.describe(), whole.data())
    output.add(whole.describe(), whole.data())
    with pytest.raises(normstats.Internal, match=rf"has {2 * X.nbytes} bytes; expected {X.nbytes}"):
        output.value()
