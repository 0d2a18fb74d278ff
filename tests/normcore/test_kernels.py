"""One set of tests for every room of kernels, against the reference in float64 on the same stored input.

The CPU's are compiled; CUDA's run on the device where there is one, and else in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="Triton is not installed")
cpu = pytest.importorskip("normcore.kernels.cpu", reason="numba is not installed")

from normcore.kernels import cuda, launch, reference
from normcore.kernels.base import (
    COUNT,
    M2,
    MAX,
    MEAN,
    MEAN_LOW,
    MIN,
    ChannelMoments,
    Coefficients,
    Rule,
    ToRange,
    ToUnit,
    coefficients,
)
from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.tuning import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [*FLOATS, torch.uint8]

# The interpreter computes with NaN and infinities in numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# (A, C, B): one element; columns; a short B, of which several columns are merged; rows, odd and long.
CHANNEL_SHAPES = [(1, 1, 1), (7, 3, 1), (1000, 2, 1), (33, 3, 7), (2, 9, 2), (5, 2, 33), (3, 2, 1000), (2, 3, 64)]
# (R, K), period and segments of the affine.
ROW_SHAPES = [(1, 1, 1, 1), (7, 3, 7, 3), (33, 65, 1, 65), (12, 60, 4, 5), (2, 1000, 1, 1000)]


def numbers(*shape: int, dtype: torch.dtype = torch.float64, mean: float = 5.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (3 * torch.randn(*shape, dtype=torch.float64, generator=generator) + mean).abs().to(dtype).to(DEVICE)


def marks(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.rand(*shape, generator=generator) < 0.6).to(DEVICE)


def masks_of(*shape: int) -> list[Tensor | None]:
    """None; full; and broadcast over each axis."""
    broadcast = [marks(*(1 if axis == other else n for axis, n in enumerate(shape))) for other in range(len(shape))]
    return [None, marks(*shape), *broadcast]


def assert_rounded(y: Tensor, expected: Tensor) -> None:
    """At most 1 ulp from the correctly rounded; float64 as near as two orders of the same few operations are.

    Up to float32 results are computed in float64, whose errors of some 1e-15 decide only ties: they differ from the
    float64 result rounded once, which is `expected`, by at most one ulp, 2 ** -23 of a float32; or, near a zero of
    value * weight + bias, by 1e-14 of what cancels there.
    """
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    if y.dtype == torch.float64:
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13, equal_nan=True)
        return
    rtol = torch.finfo(y.dtype).eps
    atol = max(torch.finfo(y.dtype).smallest_normal * rtol, 1e-14)
    torch.testing.assert_close(y.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)


def assert_same_moments(moments: Any, expected: Any, rtol: float = 1e-12) -> None:
    assert torch.equal(moments.nonfinite, expected.nonfinite)
    values, wanted = moments.values, expected.values
    for row in (MIN, MAX):
        torch.testing.assert_close(values[row], wanted[row], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values[COUNT], wanted[COUNT], rtol=1e-14, atol=0)  # sums of weights round
    # To half an ulp of the deviation, not of the mean: high and low words together.
    scale = (wanted[M2] / wanted[COUNT].clamp(min=1)).sqrt().nan_to_num()
    off = (values[MEAN] - wanted[MEAN]) + (values[MEAN_LOW] - wanted[MEAN_LOW])
    assert bool((off.nan_to_num().abs() <= 1e-13 * scale).all())
    assert torch.equal(values[MEAN].isnan(), wanted[MEAN].isnan())
    torch.testing.assert_close(values[M2], wanted[M2], rtol=rtol, atol=0, equal_nan=True)


class CpuRoom:
    """The CPU's functions with the reference's parameters."""

    @staticmethod
    def channel_moments(x: Tensor, *args: Any, **options: Any) -> ChannelMoments:
        return explicit(cpu.channel_moments(x, tuple(x.shape), *args, **options))

    @staticmethod
    def channel_norm(x: Tensor, *args: Any, **options: Any) -> tuple[Tensor, ChannelMoments]:
        y, moments = cpu.channel_norm(x, tuple(x.shape), *args, **options)
        return y, explicit(moments)

    @staticmethod
    def row_norm(x: Tensor, **options: Any) -> Tensor:
        some = options.get("weight") if options.get("weight") is not None else options.get("bias")
        per = (1, 1) if some is None else tuple(some.shape)
        return cpu.row_norm(x, tuple(x.shape), per=per, **options)

    @staticmethod
    def channel_apply(x: Tensor, *args: Any) -> Tensor:
        return cpu.channel_apply(x, tuple(x.shape), *args)

    @staticmethod
    def power_norm(x: Tensor, *args: Any, **options: Any) -> Tensor:
        return cpu.power_norm(x, tuple(x.shape), *args, **options)

    row_norm_ragged = staticmethod(cpu.row_norm_ragged)


def explicit(moments: ChannelMoments) -> ChannelMoments:
    """With a count of what is not finite where there is none."""
    none = torch.zeros_like(moments.values[COUNT])
    return moments._replace(nonfinite=none if moments.nonfinite is None else moments.nonfinite)


@pytest.fixture(params=["cpu", "cuda"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "cpu":
        monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
        return CpuRoom
    return cuda


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that small tensors have many, and a device of one multiprocessor."""
    monkeypatch.setattr(tuning, "WIDEST_IN_REGISTERS", 16)
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(tuning, "moments_tile", lambda *a, fold: Tile(1, 32, 1) if fold else Tile(4, 8, 1))
    monkeypatch.setattr(tuning, "merge_tile", lambda *a: Tile(2, 2, 1))
    monkeypatch.setattr(tuning, "apply_tile", lambda *a, fold: Tile(2, 32, 1))
    monkeypatch.setattr(tuning, "long_row_tile", lambda width: Tile(1, 32, 1))
    monkeypatch.setattr(tuning, "ragged_tile", lambda *a: Tile(2, 16, 1))
    monkeypatch.setattr(tuning, "whole_channel_tile", lambda *a: None)


# Moments of channels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", CHANNEL_SHAPES)
def test_channel_moments(room: Any, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = numbers(*shape, dtype=dtype)
    for mask in (None, marks(*shape)):
        assert_same_moments(room.channel_moments(x, mask), reference.channel_moments(x, mask))


@pytest.mark.parametrize("shape", [(33, 3, 1), (9, 5, 3), (5, 2, 70)])
def test_channel_moments_of_many_pieces(room: Any, shape: tuple[int, int, int], small_tiles: None) -> None:
    x = numbers(*shape, dtype=torch.float32)
    weights = numbers(shape[0], 1, 1, mean=10.0)
    for mask in masks_of(*shape):
        assert_same_moments(room.channel_moments(x, mask), reference.channel_moments(x, mask))
        weighted = room.channel_moments(x, mask, weights)
        assert_same_moments(weighted, reference.channel_moments(x, mask, weights))


@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 1e6), (torch.float64, 1e8), (torch.float64, 1e15)])
@pytest.mark.parametrize("shape", [(999, 2, 1), (40, 2, 50)])
def test_moments_far_from_zero(
    room: Any, shape: tuple[int, int, int], dtype: torch.dtype, mean: float, request: pytest.FixtureRequest
) -> None:
    x = numbers(*shape, dtype=dtype, mean=mean)
    centred = x.double() - mean  # exact, and a plain two-pass over it is as good as the format
    exact = centred.var((0, 2), correction=0) * shape[0] * shape[2]
    torch.testing.assert_close(room.channel_moments(x).values[M2], exact, rtol=1e-12, atol=0)
    _, whole = room.channel_norm(x, ToUnit(0.0))
    torch.testing.assert_close(whole.values[M2], exact, rtol=1e-12, atol=0)
    request.getfixturevalue("small_tiles")
    torch.testing.assert_close(room.channel_moments(x).values[M2], exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(200, 3, 1), (20, 3, 40), (20, 3, 5)])
def test_moments_of_drifting_values(room: Any, shape: tuple[int, int, int], small_tiles: None) -> None:
    """Every tile's mean is far from the first one's."""
    x = numbers(*shape) + 1e3 * torch.arange(shape[0], dtype=torch.float64, device=DEVICE)[:, None, None]
    assert_same_moments(room.channel_moments(x), reference.channel_moments(x))


@pytest.mark.parametrize("value", [0.1, -3e38, 1e-40])
@pytest.mark.parametrize("shape", [(50, 2, 1), (7, 2, 3), (3, 2, 50)])
def test_a_constant_has_exactly_no_m2(
    room: Any, shape: tuple[int, int, int], value: float, request: pytest.FixtureRequest
) -> None:
    for x in (torch.full(shape, value, dtype=dtype, device=DEVICE) for dtype in (torch.float32, torch.float64)):
        for moments in (room.channel_moments(x), room.channel_norm(x, ToUnit(0.0))[1]):
            assert moments.values[M2].tolist() == [0, 0]
            assert moments.values[MEAN].tolist() == [x[0, 0, 0].item()] * 2
    request.getfixturevalue("small_tiles")
    assert room.channel_moments(x).values[M2].tolist() == [0, 0]


@pytest.mark.parametrize("omit", [True, False])
@pytest.mark.parametrize("shape", [(40, 4, 1), (10, 4, 3), (4, 4, 40)])
def test_what_is_not_finite_is_counted(
    room: Any, shape: tuple[int, int, int], omit: bool, request: pytest.FixtureRequest
) -> None:
    x = numbers(*shape, dtype=torch.float32)
    x[0, 0, 0], x[1, 1, 0], x[2, 1, 0], x[3, 2, 0] = torch.nan, torch.inf, -torch.inf, torch.nan
    mask = torch.ones(shape, dtype=torch.bool, device=DEVICE)
    mask[3, 2, 0] = False
    rule = ToUnit(1e-5)
    everything = torch.ones_like(mask)
    for _ in range(2):
        for valid in (None, mask):
            expected = reference.channel_moments(x, everything if valid is None else valid, omit=omit)
            assert_same_moments(room.channel_moments(x, valid, omit=omit), expected)
            y, moments = room.channel_norm(x, rule, valid, omit=omit)
            assert_same_moments(moments, expected)
            assert_rounded(y, reference.channel_norm(x, rule, valid, omit=omit)[0])
        request.getfixturevalue("small_tiles")


def test_a_channel_that_starts_with_padding(room: Any, small_tiles: None) -> None:
    """The first tiles of some channels hold nothing real: the mean of another tile is the shift."""
    x = numbers(64, 3, 1, dtype=torch.float32, mean=1e6)
    mask = torch.ones(64, 3, 1, dtype=torch.bool, device=DEVICE)
    mask[:50, 1], mask[:, 2] = False, False
    assert_same_moments(room.channel_moments(x, mask), reference.channel_moments(x, mask))


def test_squares_that_overflow_are_infinite_and_never_nan(room: Any) -> None:
    x = torch.tensor([1e200, -1e200, 1.0], dtype=torch.float64, device=DEVICE).reshape(3, 1, 1)
    assert room.channel_moments(x).values[M2].item() == torch.inf


# Channels by coefficients and rules


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*CHANNEL_SHAPES, (2, 2, 1030)])
def test_channel_apply(room: Any, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = numbers(*shape, dtype=dtype)
    offset, low, divisor, factor, shift = (numbers(shape[1], mean=1.0, seed=seed) for seed in range(5))
    divisor[0] = 0
    by = Coefficients.of(offset, 1e-17 * low, divisor, factor, shift)
    for mask in (None, marks(shape[0], 1, shape[2])):
        for given in (by, by._replace(low=-0.7, high=1.3)):
            assert_rounded(room.channel_apply(x, given, mask), reference.channel_apply(x, given, mask))


RULES = [ToUnit(1e-5), ToUnit(0.1, 1e-3, clip=1.0), ToRange(0.0, 1.0), ToRange(-1.0, 0.3, clip=True)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_channel_norm(room: Any, dtype: torch.dtype, rule: Rule, request: pytest.FixtureRequest) -> None:
    for shape in [(7, 3, 1), (33, 3, 7), (5, 2, 33)]:
        x = numbers(*shape, dtype=dtype)
        if isinstance(rule, ToUnit) and shape == (33, 3, 7):
            rule = rule._replace(weight=numbers(3), bias=numbers(3, seed=9))
        elif isinstance(rule, ToUnit):
            rule = rule._replace(weight=None, bias=None)
        for mask in (None, marks(shape[0], 1, shape[2])):
            y, moments = room.channel_norm(x, rule, mask)
            expected, expected_moments = reference.channel_norm(x, rule, mask)
            assert_rounded(y, expected)
            assert_same_moments(moments, expected_moments)
            again = room.channel_apply(x, coefficients(rule, moments.values), mask)
            assert_rounded(again, expected)
    request.getfixturevalue("small_tiles")
    y, moments = room.channel_norm(x, rule, mask)
    assert_rounded(y, expected)
    assert_same_moments(moments, expected_moments)


def test_the_ends_of_a_range_are_reached_exactly(room: Any) -> None:
    for dtype in FLOATS:
        y, _ = room.channel_norm(numbers(50, 3, 1, dtype=dtype), ToRange(0.0, 1.0))
        assert y.amin((0, 2)).tolist() == [0, 0, 0]
        assert y.amax((0, 2)).tolist() == [1, 1, 1]


# Rows


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROW_SHAPES)
def test_row_norm(room: Any, shape: tuple[int, int, int, int], dtype: torch.dtype, center: bool) -> None:
    rows, width, period, segments = shape
    x = numbers(rows, width, dtype=dtype)
    affine = {"weight": numbers(period, segments), "bias": numbers(period, segments, seed=7)}
    # What broadcasts is the same for all types.
    for mask in masks_of(rows, width)[: None if dtype == torch.float32 else 2]:
        for options in ({}, affine, {"bias": affine["bias"]}) if mask is None else (affine,):
            y = room.row_norm(x, eps=1e-5, center=center, mask=mask, **options)
            assert_rounded(y, reference.row_norm(x, eps=1e-5, center=center, mask=mask, **options))


@pytest.mark.parametrize("widest", [32, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_row_norm_of_rows_wider_than_a_tile(
    room: Any, dtype: torch.dtype, widest: int, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "WIDEST_OF_ONE_PROGRAM", widest)
    for rows, width, period, segments in [(2, 33, 1, 33), (3, 100, 3, 4)]:
        x = numbers(rows, width, dtype=dtype)
        weight, bias = numbers(period, segments), numbers(period, segments, seed=7)
        late = torch.arange(width, device=DEVICE)[None, :] >= 32  # the first tile holds nothing real
        for mask in (None, marks(rows, width), late):
            for center in (True, False):
                y = room.row_norm(x, eps=1e-5, center=center, weight=weight, bias=bias, mask=mask)
                expected = reference.row_norm(x, eps=1e-5, center=center, weight=weight, bias=bias, mask=mask)
                assert_rounded(y, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wide", [False, True])
def test_equal_elements_of_a_row_give_exactly_the_bias(
    room: Any, dtype: torch.dtype, wide: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        request.getfixturevalue("small_tiles")
    x = torch.full((3, 77), 0.1, dtype=dtype, device=DEVICE)
    bias = torch.full((1, 1), 0.5, dtype=torch.float64, device=DEVICE)
    for eps in (0.0, 1e-5):
        assert bool((room.row_norm(x, eps=eps) == 0).all())
        assert bool((room.row_norm(x, eps=eps, bias=bias) == 0.5).all())
    assert bool((room.row_norm(0 * x, eps=0.0, center=False) == 0).all())
    starts, lengths = torch.tensor([[0, 77], [77, 154]], device=DEVICE)
    assert bool((room.row_norm_ragged(x.flatten(), starts, lengths, eps=0.0)[:231] == 0).all())
    monkeypatch.setattr(tuning, "WIDEST_OF_ONE_PROGRAM", 16)
    assert bool((room.row_norm(x, eps=0.0) == 0).all())


@pytest.mark.parametrize(
    ("dtype", "mean"), [(torch.float32, 1e6), (torch.float64, 1e8), (torch.float64, 1e15), (torch.float16, 2048.0)]
)
def test_rows_far_from_zero(room: Any, dtype: torch.dtype, mean: float, request: pytest.FixtureRequest) -> None:
    x = numbers(3, 100, dtype=dtype, mean=mean)
    exact = x.double() - mean
    exact = (exact - exact.mean(1, keepdim=True)) / exact.std(1, correction=0, keepdim=True)
    assert_rounded(room.row_norm(x, eps=0.0), exact.to(dtype))
    request.getfixturevalue("small_tiles")
    assert_rounded(room.row_norm(x, eps=0.0), exact.to(dtype))


def test_large_magnitudes_neither_overflow_nor_vanish(room: Any) -> None:
    x = 1e30 * numbers(3, 50, mean=0.0).float()
    for center in (True, False):
        y = room.row_norm(x, eps=1e-5, center=center)
        assert_rounded(y, reference.row_norm(x, eps=1e-5, center=center))
        assert bool(y.isfinite().all())
        assert float(y.abs().amax()) > 1


def test_a_nan_spoils_its_row_alone(room: Any) -> None:
    x = numbers(3, 20, dtype=torch.float32)
    x[1, 3] = torch.nan
    y = room.row_norm(x, eps=1e-5)
    assert y.isnan().all(1).tolist() == [False, True, False]
    assert_rounded(y, reference.row_norm(x, eps=1e-5))


# Ragged rows


def ragged(x: Tensor, starts: Tensor, lengths: Tensor, **options: Any) -> Tensor:
    """The reference, row by row; of an empty row nothing is asked."""
    full = lengths > 0
    return reference.row_norm_ragged(x, starts[full], lengths[full], **options)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_norm_ragged(room: Any, dtype: torch.dtype, tiny: bool, request: pytest.FixtureRequest) -> None:
    if tiny:
        request.getfixturevalue("small_tiles")
    lengths = torch.tensor([5, 0, 1, 70, 3, 17, 2, 1, 0, 33], device=DEVICE)
    gaps = torch.tensor([0, 2, 0, 1, 0, 0, 3, 0, 0, 0], device=DEVICE)
    starts = torch.cumsum(lengths + gaps, 0) - lengths
    x = numbers(int(starts[-1] + lengths[-1]) + 3, dtype=dtype)
    weight, bias = numbers(80), numbers(80, seed=3)
    between = x.float() if dtype == torch.uint8 else x  # what is in no row is not written
    for center in (True, False):
        for options in ({}, {"weight": weight, "bias": bias}):
            found, expected = between.clone(), between.clone()
            ragged(x, starts, lengths, eps=1e-5, center=center, out=expected, **options)
            room.row_norm_ragged(x, starts, lengths, eps=1e-5, center=center, out=found, **options)
            assert_rounded(found, expected)
    back, found = (starts.flip(0), lengths.flip(0)), between.clone()
    room.row_norm_ragged(x, *back, eps=1e-5, out=found)
    assert_rounded(found, ragged(x, starts, lengths, eps=1e-5, out=between.clone()))


# Powers


@pytest.mark.parametrize("p", [1.0, 2.0, torch.inf, 0.5, 40.0])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_power_norm(room: Any, dtype: torch.dtype, p: float, request: pytest.FixtureRequest) -> None:
    x = numbers(7, 65, dtype=dtype)
    x[0] = 0
    for _ in range(2):
        for mask in (None, marks(7, 65), marks(1, 65)):
            assert_rounded(room.power_norm(x, p, 1e-12, mask), reference.power_norm(x, p, 1e-12, mask))
        assert_rounded(room.power_norm(x, p, 1e9), reference.power_norm(x, p, 1e9))
        request.getfixturevalue("small_tiles")


@pytest.mark.parametrize("p", [1.0, 2.0, torch.inf, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_norm_of_what_is_not_finite(room: Any, dtype: torch.dtype, p: float) -> None:
    x = numbers(4, 9, dtype=dtype)
    x[0, 1], x[1, 1], x[2, 1], x[2, 2] = torch.nan, torch.inf, -torch.inf, torch.nan
    assert_rounded(room.power_norm(x, p, 1e-12), reference.power_norm(x, p, 1e-12))


def test_power_norm_scales(room: Any) -> None:
    for scale in (1e200, 1e-200):
        x = scale * numbers(2, 9)
        assert_rounded(room.power_norm(x, 2.0, 0.0), reference.power_norm(x, 2.0, 0.0))


# What all of them share

BY = Coefficients(torch.tensor([1.0, 0, 2, 3, 4], dtype=torch.float64, device=DEVICE)[:, None].repeat(1, 3))
# Rows of four; and as much of an arena.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "channel_apply": lambda x, out: cuda.channel_apply(x, BY, out=out),
    "channel_norm": lambda x, out: cuda.channel_norm(x, ToUnit(1e-5), out=out)[0],
    "row_norm": lambda x, out: cuda.row_norm(x.view(-1, 4), eps=1e-5, out=None if out is None else out.view(-1, 4)),
    "power_norm": lambda x, out: cuda.power_norm(x.view(-1, 4), 2, 0.0, out=None if out is None else out.view(-1, 4)),
    "ragged": lambda x, out: cuda.row_norm_ragged(
        x.flatten(),
        torch.arange(0, x.numel(), 4, device=DEVICE),
        torch.full((x.numel() // 4,), 4, device=DEVICE),
        eps=1e-5,
        out=None if out is None else out.flatten(),
    ),
}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_in_place(name: str, small: bool, request: pytest.FixtureRequest) -> None:
    if small:
        request.getfixturevalue("small_tiles")
    x = numbers(7, 3, 4, dtype=torch.float32)
    expected = OPERATIONS[name](x, None)
    other = torch.empty_like(x)
    assert OPERATIONS[name](x, other).data_ptr() == other.data_ptr()
    assert torch.equal(other.view(expected.shape), expected)
    assert OPERATIONS[name](x, x).data_ptr() == x.data_ptr()
    assert torch.equal(x.view(expected.shape), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_nothing_in_nothing_out(room: Any, shape: tuple[int, int, int]) -> None:
    for dtype in (torch.float32, torch.uint8):
        x = torch.empty(shape, dtype=dtype, device=DEVICE)
        assert_same_moments(room.channel_moments(x), reference.channel_moments(x))
        assert_same_moments(room.channel_norm(x, ToUnit(1e-5))[1], reference.channel_moments(x))
        for operation in OPERATIONS.values():
            y = operation(x, None)
            assert (y.dtype, y.numel()) == (torch.float32, 0)
    none = torch.empty(4, 0, 2, device=DEVICE)
    assert room.channel_moments(none).values.shape == (7, 0)
    assert room.row_norm(torch.empty(3, 0, device=DEVICE), eps=1e-5).shape == (3, 0)


def test_results_do_not_depend_on_the_run(room: Any, small_tiles: None) -> None:
    x = numbers(50, 3, 40, dtype=torch.float32)
    assert torch.equal(room.channel_moments(x).values, room.channel_moments(x).values)


# Compiled for the device, without one: what the interpreter lets pass, such as a variable that changes its shape.
COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class NoDevice:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device=None: 0

driver.set_active(NoDevice())
run = JITFunction.run

def compiled(self, *args, grid, warmup, **options):
    shared = run(self, *args, grid=grid, warmup=True, **options).metadata.shared
    assert shared <= 227 * 1024, (self.__name__, shared)
    names.add(self.__name__)

JITFunction.run, names = compiled, set()
from normcore.kernels import cuda
from normcore.kernels.base import ToUnit
x = torch.empty(3, 70000)
mask, ones = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 70000, dtype=torch.float64)
starts, lengths = torch.tensor([[0, 3000], [3000, 2000]])
cuda.row_norm(x, eps=0.0, weight=ones, bias=ones)
cuda.row_norm(x.bfloat16().view(30, 7000), eps=0.0, weight=ones[:, :7000], bias=ones[:, :7000])
cuda.row_norm(x.view(21, 10000), eps=0.0, weight=ones[:, :10000], mask=mask)
cuda.row_norm_ragged(x.flatten(), starts, lengths, eps=0.0, weight=ones[0])
cuda.power_norm(x, 3.0, 0.0)
cuda.channel_norm(x.view(70000, 3, 1), ToUnit(0.0), mask[None])
cuda.channel_norm(x.view(70, 3, 1000)[:2], ToUnit(0.0))
assert len(names) == 9, names
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="every other test compiles")
def test_every_kernel_compiles_for_hopper() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_what_lies_across_words_is_read_as_it_is(offset: int) -> None:
    """A tensor that was received lies where its message has it."""
    x = torch.randn(300, 40)
    data = bytearray(offset + x.nbytes)
    data[offset:] = x.numpy().tobytes()
    across = torch.frombuffer(data, dtype=torch.float32, offset=offset).reshape(x.shape)
    assert across.data_ptr() % 4 != 0
    assert torch.equal(launch.row_norm(across, (300, 40), 1e-5), launch.row_norm(x, (300, 40), 1e-5))
    found, expected = (launch.channel_moments(one, (300, 40, 1)).values for one in (across, x))
    assert torch.equal(found, expected)
    y, z = (launch.channel_norm(one, (300, 40, 1), ToUnit(1e-5))[0] for one in (across, x))
    assert torch.equal(y, z)
