"""Moments of channels, in every layout, against rational arithmetic on the same stored values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import normcore
from normcore.kernels.base import COUNT, M2, MAX, MEAN, MEAN_LOW, MIN
from tests.numerics import data
from tests.numerics.conftest import Worst
from tests.numerics.data import FLOATS, INTEGERS
from tests.numerics.exact import EPS, Statistics, moment_errors, statistics_of
from tests.numerics.rooms import Room

# (N, C) and NHWC; NCHW with a short and with a long run of each channel; rows.
LAYOUTS = {"columns": (301, 3, 1), "short runs": (21, 3, 7), "long runs": (2, 2, 301), "rows": (1, 4, 301)}
by_layout = pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
SAME_ROOM = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def drift(count: int) -> float:
    """What a sum of so many float64 terms may be off, in eps of it.

    Each addition rounds by eps / 2 at most, at random signs: sqrt(count) / 2 of it, with as much for the squares and
    four times both, as a sum about the first value has cancelled up to that much (2 deviations off: 1 + 2 ** 2).
    """
    return 4 + 4 * math.sqrt(count)


def hold(worst: Worst, name: str, x: Tensor, found: Tensor, allowed: float) -> None:
    """Hold packed moments (7, C) of x (A, C, B) to the exact ones."""
    for channel in range(x.shape[1]):
        hold_one(
            worst, name, x.dtype, found[:, channel], statistics_of(x[:, channel].double().flatten().tolist()), allowed
        )


def hold_one(
    worst: Worst, name: str, dtype: torch.dtype, found: Tensor, exact: Statistics, allowed: float, count: float = 0.0
) -> None:
    """Hold packed moments (7,) to the exact ones, the count to so many eps of itself."""
    errors = moment_errors(found, exact)
    assert errors.count <= count
    worst(f"moments, mean ({name})", dtype, errors.mean, "eps of a deviation", allowed)
    worst(f"moments, m2 ({name})", dtype, errors.m2, "eps", allowed)


@by_layout
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_are_exact_to_few_eps_of_whatever_values(
    every_room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst
) -> None:
    for case in every_room.some(data.CASES):
        x = data.CASES[case](dtype, shape)
        if every_room.reads(x):
            hold(worst, every_room.name, x, every_room.channel_moments(x), drift(301))


@by_layout
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_moments_of_integers(every_room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst) -> None:
    x = data.whole(dtype, shape)
    hold(worst, every_room.name, x, every_room.channel_moments(x), drift(301))


@by_layout
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_mean_far_from_zero_costs_the_variance_nothing(
    room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst
) -> None:
    """To 1e-12 at most is what is demanded at mean / deviation = 1e6; what is held is the same as for any values."""
    for ratio in room.some(data.FAR[dtype]):
        x = data.far(dtype, shape, ratio)
        hold(worst, room.name, x, room.channel_moments(x), drift(301))
    assert drift(301) * EPS < 1e-12


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_moments_of_a_fused_normalization_are_as_exact(room: Room, dtype: torch.dtype, worst: Worst) -> None:
    for shape in room.some(LAYOUTS.values()):
        for x in (data.CASES["outlier first"](dtype, shape), data.far(dtype, shape, data.FAR[dtype][-1])):
            found = room.channel_norm(x, normcore.ToUnit(1e-5))[1]
            hold(worst, f"{room.name}, fused", x, found, drift(301))


@by_layout
@pytest.mark.parametrize("value", [0.1, -1e30, 1e-40, 3.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_constant_has_exactly_no_m2(
    room: Room, dtype: torch.dtype, value: float, shape: tuple[int, int, int]
) -> None:
    x = torch.full(shape, value, dtype=dtype)
    if not room.reads(x):
        pytest.skip("Triton's interpreter misreads subnormal bfloat16")
    for found in (room.channel_moments(x), room.channel_norm(x, normcore.ToUnit(0.0))[1]):
        assert bool((found[M2] == 0).all())
        assert bool((found[MEAN] == x[0, 0, 0].double()).all())
        assert bool((found[MEAN_LOW] == 0).all())


@SAME_ROOM
@given(
    base=st.floats(2.0**-100, 2.0**100, width=32),
    steps=st.lists(st.integers(-1, 1), min_size=1, max_size=80),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_variance_of_values_an_ulp_apart_is_never_negative_and_exact(
    room: Room, worst: Worst, base: float, steps: list[int], dtype: torch.dtype
) -> None:
    centre = torch.tensor(base, dtype=dtype)
    above, below = (torch.nextafter(centre, torch.tensor(end, dtype=dtype)) for end in (torch.inf, -torch.inf))
    column = torch.stack([(centre, above, below)[step] for step in steps])
    for x in (column.reshape(-1, 1, 1), column.reshape(1, 1, -1)):
        found = room.channel_moments(x)
        assert found[M2].item() >= 0
        assert found[MIN].item() <= found[MEAN].item() <= found[MAX].item()
        hold(worst, room.name, x, found, drift(301))


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 3, 0), (0, 3, 2), (5, 1, 1), (1, 1, 5)])
def test_moments_of_nothing_of_one_value_and_of_one_channel(
    room: Room, shape: tuple[int, int, int], worst: Worst
) -> None:
    for dtype in FLOATS:
        x = data.CASES["random"](dtype, shape)
        found = room.channel_moments(x)
        if x.numel() == 0:
            nothing = [0.0, 0.0, 0.0, 0.0, 0.0, math.inf, -math.inf]
            assert found.T.tolist() == [nothing] * shape[1]
            continue
        hold(worst, room.name, x, found, drift(301))


# Masks, weights, NaN and infinities


@by_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masked_and_weighted_moments_are_those_of_what_is_left(
    room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst
) -> None:
    x = data.far(dtype, shape, 1e3)
    mask = data.normal(*shape, seed=1) > -0.5
    mask[:, 0] &= torch.arange(shape[2]) % 2 == 0 if shape[0] == 1 else torch.arange(shape[0])[:, None] >= shape[0] // 2
    weights = data.normal(shape[0], 1, 1, seed=2).abs() + 0.1
    plain, weighted = room.channel_moments(x, mask), room.channel_moments(x, mask, weights)
    for channel in range(shape[1]):
        real = mask[:, channel]
        values = x[:, channel].double()[real].tolist()
        each = weights[:, 0].expand(shape[0], shape[2])[real].tolist()
        hold_one(worst, room.name, dtype, plain[:, channel], statistics_of(values), drift(301))
        # A sum of n weights is rounded n - 1 times, by eps / 2 at most.
        hold_one(worst, room.name, dtype, weighted[:, channel], statistics_of(values, each), drift(301), len(each) / 2)


@by_layout
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_not_finite_is_left_out_without_a_trace_or_spoils_its_channel_alone(
    room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst
) -> None:
    x = data.CASES["random"](dtype, shape)
    bad = torch.zeros(shape, dtype=torch.bool)
    bad[0, 0, 0] = bad[-1, 0, -1] = bad[shape[0] // 2, 1, shape[2] // 2] = True
    x[bad] = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    left, spoilt = room.channel_moments(x, omit=True), room.channel_moments(x)
    for channel in range(shape[1]):
        values = x[:, channel].double()[~bad[:, channel]].tolist()
        hold_one(worst, room.name, dtype, left[:, channel], statistics_of(values), drift(301))
        if bad[:, channel].any():
            assert spoilt[COUNT, channel] == shape[0] * shape[2]
            assert bool(spoilt[1:, channel].isnan().all())
        else:
            assert spoilt[:, channel].equal(left[:, channel])


# Many blocks, merged


LONG = {
    "column": (3 * 4096 + 17, 1, 1),
    "columns": (2 * 4096 + 1, 3, 1),
    "row": (1, 1, 5 * 4096 + 3),
    "NCHW": (7, 2, 3000),
}


@pytest.mark.parametrize("shape", LONG.values(), ids=LONG)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_of_many_blocks_are_as_exact_as_those_of_one(
    room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst
) -> None:
    """Blocks merge in double-double, so that the sums of 4,096 values in each are all that rounds."""
    for case in room.some(("sorted", "random", "outlier first", "few bits")):
        x = data.CASES[case](dtype, shape)
        hold(worst, f"{room.name}, many blocks", x, room.channel_moments(x), drift(4096))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_merged_parts_are_the_whole(dtype: torch.dtype, worst: Worst) -> None:
    x = data.far(dtype, (12301, 2), data.FAR[dtype][0])
    merged = normcore.merge_all([normcore.moments_of(part, 1) for part in x.split([1, 4096, 7000, 1204])])
    hold(worst, "merge", x[:, :, None], merged.values, drift(4096))


# The layouts by their own names


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_moments_of_tensors_in_every_layout(dtype: torch.dtype, worst: Worst) -> None:
    make = data.CASES["random"] if dtype.is_floating_point else data.whole
    image = make(dtype, (3, 4, 9, 11))
    last = image.to(memory_format=torch.channels_last)
    seen = image.reshape(3, 4, 99)
    hold(worst, "moments_of", seen, normcore.moments_of(image, 1).values, drift(301))
    hold(worst, "moments_of", seen, normcore.moments_of(last, 1).values, drift(301))
    hold(worst, "moments_of", seen, normcore.moments_of(image.permute(0, 2, 3, 1).contiguous(), -1).values, drift(301))
    rows = make(dtype, (301, 3))
    hold(worst, "moments_of", rows[:, :, None], normcore.moments_of(rows, 1).values, drift(301))
    hold(worst, "moments_of", rows[:, :, None], normcore.moments_of(rows.T, 0).values, drift(301))
