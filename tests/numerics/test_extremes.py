"""Constants, magnitudes at the ends of a type, and tensors of nothing or one value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normcore.kernels.base import ToUnit
from tests.numerics import data
from tests.numerics.data import FLOATS
from tests.numerics.rooms import Room

SHAPES = [(50, 2, 1), (7, 2, 3), (3, 2, 50), (1, 2, 300)]


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("value", [0.1, -1e30, 1e-40, 3.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_constants_give_exactly_zero_or_exactly_the_bias(
    room: Room, dtype: torch.dtype, value: float, eps: float
) -> None:
    bias = torch.tensor([0.1, -0.7], dtype=torch.float64)
    if not room.reads(torch.tensor(value, dtype=dtype)):
        pytest.skip("Triton's interpreter misreads subnormal bfloat16")
    for shape in room.some(SHAPES):
        x = torch.full(shape, value, dtype=dtype)
        assert bool((room.channel_norm(x, ToUnit(eps))[0] == 0).all())
        y, _ = room.channel_norm(x, ToUnit(eps, weight=3 * bias, bias=bias))
        assert y.equal(bias.to(dtype)[None, :, None].expand(shape))
    for rows, width in room.some([(2, 1), (1, 300), (4, 77)]):
        x = torch.full((rows, width), value, dtype=dtype)
        each = data.normal(1, width)
        assert bool((room.row_norm(x, eps=eps) == 0).all())
        assert room.row_norm(x, eps=eps, weight=3 * each, bias=each).equal(each.to(dtype).expand(rows, width))
        lengths = torch.full((rows,), width)
        y = room.row_norm_ragged(x.flatten(), torch.cumsum(lengths, 0) - lengths, lengths, eps=eps, bias=each[0])
        assert y.equal(each.to(dtype).expand(rows, width).flatten())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_large_magnitudes_neither_overflow_nor_give_zeros(room: Room, dtype: torch.dtype) -> None:
    def is_plain(y: Tensor) -> bool:
        return bool(y.isfinite().all()) and float(y.double().abs().amax()) > 1 and bool((y != 0).all())

    x = data.CASES["huge"](dtype, (2, 300))
    assert is_plain(room.row_norm(x, eps=1e-5))
    assert is_plain(room.row_norm(x, eps=1e-5, center=False))
    for shape in ((300, 2, 1), (1, 2, 300)):
        assert is_plain(room.channel_norm(x.reshape(shape), ToUnit(1e-5))[0])


def test_float64_subnormals_have_a_mean_and_no_variance(room: Room) -> None:
    """Their squares are below every float64: they are a constant's as far as the deviation goes, and stay finite."""
    x = data.CASES["tiny"](torch.float64, (3, 65))
    mean = x.mean(1, keepdim=True)
    for y in (room.row_norm(x, eps=0.0), room.channel_norm(x[None], ToUnit(0.0))[0][0]):
        torch.testing.assert_close(y, x - mean, rtol=0, atol=2e-323)
    y = room.row_norm(x, eps=1e-5)
    torch.testing.assert_close(y, (x - mean) / 1e-5**0.5, rtol=0, atol=1e-320)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_one_value_one_row_and_one_column(room: Room, dtype: torch.dtype) -> None:
    for shape in ((0, 3), (3, 0), (1, 1), (1, 5), (5, 1)):
        x = data.CASES["random"](dtype, shape)
        for center in (True, False):
            y = room.row_norm(x, eps=1e-5, center=center)
            assert (tuple(y.shape), y.dtype) == (shape, dtype)
            assert bool(y.isfinite().all())
            if shape[1] == 1 and center:
                assert bool((y == 0).all())
        if 0 not in shape:
            y, found = room.channel_norm(x[None], ToUnit(1e-5))
            assert bool(y.isfinite().all() & found.isfinite().all())
    ones = room.row_norm(torch.full((2, 1), -3.0, dtype=dtype), eps=0.0, center=False)
    assert ones.tolist() == [[-1.0], [-1.0]]
