"""Channels by given coefficients and by rules from their own moments, against rational arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normcore.kernels.base import Coefficients, Rule, ToRange, ToUnit
from tests.numerics import data
from tests.numerics.conftest import Worst
from tests.numerics.data import FLOATS, INTEGERS
from tests.numerics.exact import Line, applied, joined, normalized, ranged
from tests.numerics.outputs import hold, hold_far
from tests.numerics.rooms import Room

SHAPES = [(67, 3, 1), (9, 2, 7), (2, 2, 40), (1, 2, 300)]
WEIGHT, BIAS = data.normal(3, seed=1), data.normal(3, seed=2)


def by_channel(y: Tensor) -> Tensor:
    """Outputs (A, C, B) in the order of lines."""
    return y.transpose(0, 1).flatten()


def values_of(x: Tensor, channel: int) -> list[float]:
    return x[:, channel].double().flatten().tolist()


def line_of(x: Tensor, rule: Rule) -> Line:
    lines = []
    for channel in range(x.shape[1]):
        values = values_of(x, channel)
        if isinstance(rule, ToRange):
            lines.append(ranged(values, rule.low, rule.high))
            continue
        weight, bias = (
            None if one is None else [float(one[channel])] * len(values) for one in (rule.weight, rule.bias)
        )
        lines.append(normalized(values, rule.eps, std_eps=rule.std_eps, weight=weight, bias=bias))
    return joined(lines)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_coefficients_are_applied_and_rounded_once(
    every_room: Room, dtype: torch.dtype, shape: tuple[int, int, int], worst: Worst
) -> None:
    x = (data.CASES["random"] if dtype.is_floating_point else data.whole)(dtype, shape)
    offset, low, factor, shift = (data.normal(shape[1], seed=seed) for seed in range(4))
    divisor = data.normal(shape[1], seed=5).abs() + 0.1
    by = Coefficients.of(offset, 1e-17 * low, divisor, factor, shift)
    for given in (by, by._replace(low=-0.7, high=1.3)):
        line = joined(applied(values_of(x, channel), given, channel) for channel in range(shape[1]))
        hold(
            worst, f"channel apply ({every_room.name})", by_channel(every_room.channel_apply(x, given)), line, of=dtype
        )


RULES = {
    "batch norm": ToUnit(1e-5),
    "batch norm, affine": ToUnit(1e-5),
    "batch norm, eps 0": ToUnit(0.0),
    "mean variance norm": ToUnit(0.0, std_eps=1e-9),
    "min-max": ToRange(-1.0, 0.3),
}


def rule_of(name: str, channels: int) -> Rule:
    rule = RULES[name]
    if name.endswith("affine") and isinstance(rule, ToUnit):
        return rule._replace(weight=WEIGHT[:channels], bias=BIAS[:channels])
    return rule


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_channels_by_their_own_statistics_are_rounded_once(
    every_room: Room, dtype: torch.dtype, name: str, worst: Worst
) -> None:
    for case in every_room.some(data.CASES):
        for shape in SHAPES[::3] if name == "batch norm" else SHAPES[1:3]:
            x = data.CASES[case](dtype, shape)
            # Squares of float64 subnormals are 0, which only eps covers: see test_extremes.
            lost = case == "tiny" and dtype == torch.float64 and name == "batch norm, eps 0"
            if not lost and every_room.reads(x):
                rule = rule_of(name, x.shape[1])
                y, _ = every_room.channel_norm(x, rule)
                hold(worst, f"{name.partition(',')[0]} ({every_room.name})", by_channel(y), line_of(x, rule))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_channels_far_from_zero_are_as_good_as_their_format(
    room: Room, dtype: torch.dtype, name: str, worst: Worst
) -> None:
    for ratio in room.some(data.FAR[dtype]):
        for shape in room.some(SHAPES[:3]):
            x = data.far(dtype, shape, ratio)
            rule = rule_of(name, x.shape[1])
            hold_far(
                worst,
                f"{name.partition(',')[0]} ({room.name})",
                by_channel(room.channel_norm(x, rule)[0]),
                line_of(x, rule),
                ratio,
            )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_ends_of_a_range_are_reached_exactly(room: Room, dtype: torch.dtype) -> None:
    for make in (data.CASES["random"], data.CASES["outlier first"], data.CASES["huge"]):
        y, _ = room.channel_norm(make(dtype, (67, 3, 1)), ToRange(0.0, 1.0))
        assert y.amin(0).flatten().tolist() == [0.0] * 3
        assert y.amax(0).flatten().tolist() == [1.0] * 3


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_masked_is_in_no_statistic_and_stays(room: Room, dtype: torch.dtype, worst: Worst) -> None:
    x = data.far(dtype, (9, 2, 7), 10.0)
    mask = data.normal(9, 1, 7, seed=3) > -0.3
    full = mask.expand(x.shape)
    y, _ = room.channel_norm(x, ToUnit(1e-5), mask)
    assert y[~full].equal(x[~full])
    rows = [x[:, channel][mask[:, 0]].double().tolist() for channel in range(2)]
    outputs = torch.cat([y[:, channel][mask[:, 0]] for channel in range(2)])
    hold(worst, f"batch norm ({room.name})", outputs, joined(normalized(row, 1e-5) for row in rows))
    assert math.isfinite(float(y.double().sum()))
