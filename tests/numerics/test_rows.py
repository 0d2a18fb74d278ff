"""Rows normalized by their own statistics, against rational arithmetic on the same stored values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.numerics import data
from tests.numerics.conftest import Worst
from tests.numerics.data import FLOATS, INTEGERS
from tests.numerics.exact import Line, joined, normalized, statistics_of, ulps
from tests.numerics.outputs import hold, hold_far
from tests.numerics.rooms import Room
from tests.numerics.rooms import of as room_of

ROWS, WIDTH = 4, 45


def line_of(
    x: Tensor,
    *,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Line:
    """What x (R, K) is to become; weight and bias are (P, S) as in reference.row_norm."""
    rows = x.double().tolist()
    weights, biases = (
        None if one is None else one.repeat_interleave(x.shape[1] // one.shape[1], 1).tolist() for one in (weight, bias)
    )
    return joined(
        normalized(
            row,
            eps,
            center=center,
            weight=None if weights is None else weights[r % len(weights)],
            bias=None if biases is None else biases[r % len(biases)],
        )
        for r, row in enumerate(rows)
    )


def affine(period: int, segments: int) -> dict[str, Tensor]:
    return {"weight": data.normal(period, segments, seed=1), "bias": data.normal(period, segments, seed=2)}


# Layer norm and RMS norm, plain and with an affine of each element; group norm's and instance norm's affines.
KINDS = {
    "layer norm": ({}, {}),
    "layer norm, affine": ({}, affine(1, WIDTH)),
    "RMS norm": ({"center": False}, {}),
    "RMS norm, weight": ({"center": False}, {"weight": affine(1, WIDTH)["weight"]}),
    "group norm": ({}, affine(2, 5)),
    "instance norm": ({}, affine(ROWS, 1)),
}
by_kind = pytest.mark.parametrize("kind", KINDS)


@by_kind
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_are_rounded_once(every_room: Room, dtype: torch.dtype, kind: str, worst: Worst) -> None:
    options, parameters = KINDS[kind]
    name = f"{kind.partition(',')[0]} ({every_room.name})"
    for case in every_room.some(data.CASES):
        x = data.CASES[case](dtype, (ROWS, WIDTH))
        if not every_room.reads(x):
            continue
        # Squares of float64 subnormals are 0, which only eps covers: see test_extremes.
        for eps in (1e-5,) if case == "tiny" and dtype == torch.float64 else (1e-5, 0.0):
            y = every_room.row_norm(x, eps=eps, **options, **parameters)
            hold(worst, name, y, line_of(x, eps=eps, **options, **parameters))


@by_kind
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_far_from_zero_are_as_good_as_their_format(
    room: Room, dtype: torch.dtype, kind: str, worst: Worst
) -> None:
    options, parameters = KINDS[kind]
    for ratio in room.some(data.FAR[dtype]):
        x = data.far(dtype, (ROWS, WIDTH), ratio)
        y = room.row_norm(x, eps=0.0, **options, **parameters)
        hold_far(
            worst, f"{kind.partition(',')[0]} ({room.name})", y, line_of(x, eps=0.0, **options, **parameters), ratio
        )


def test_one_value_an_ulp_off_in_a_long_constant_row(room: Room, worst: Worst) -> None:
    """Mean / deviation is 2 ** 23 * sqrt(3000) = 4.6e8: as far as a float32 row of that length can be."""
    x = torch.ones(1, 3000)
    x[0, 1500] += torch.finfo(torch.float32).eps
    # The mean rounded to float64 is 2 ** -53 * 4.6e8 of a deviation off: 0.86 ulp of it.
    figure = ulps(room.row_norm(x, eps=0.0), line_of(x, eps=0.0), 1.0)
    worst(f"layer norm ({room.name}), one ulp off", torch.float32, figure, "ulp of 1 + |y|", 0.5 + 0.86)


@by_kind
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_rows_of_integers_become_float32(room: Room, dtype: torch.dtype, kind: str, worst: Worst) -> None:
    x = data.whole(dtype, (ROWS, WIDTH))
    options, parameters = KINDS[kind]
    y = room.row_norm(x, eps=1e-5, **options, **parameters)
    assert y.dtype == torch.float32
    hold(worst, f"{kind.partition(',')[0]} ({room.name})", y, line_of(x, eps=1e-5, **options, **parameters), of=dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_rows_of_different_lengths_in_one_arena(every_room: Room, dtype: torch.dtype, worst: Worst) -> None:
    lengths = torch.tensor([65, 1, 33, 7, 2, 200])
    starts = torch.cumsum(lengths, 0) - lengths
    x = (data.CASES["random"] if dtype.is_floating_point else data.whole)(dtype, (1, int(lengths.sum())))[0]
    weight, bias = data.normal(200, seed=1), data.normal(200, seed=2)
    for center in (True, False):
        for parameters in ({}, {"weight": weight, "bias": bias}):
            y = every_room.row_norm_ragged(x, starts, lengths, eps=1e-5, center=center, **parameters)
            line = joined(
                line_of(
                    row[None],
                    eps=1e-5,
                    center=center,
                    **{name: one[None, : len(row)] for name, one in parameters.items()},
                )
                for row in x.split(lengths.tolist())
            )
            hold(worst, f"ragged rows ({every_room.name})", y, line, of=dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_masked_is_in_no_statistic_and_stays(room: Room, dtype: torch.dtype, worst: Worst) -> None:
    x = data.far(dtype, (ROWS, WIDTH), 10.0)
    mask = data.normal(ROWS, WIDTH, seed=3) > -0.3
    mask[0], mask[1] = False, torch.arange(WIDTH) > 40
    y = room.row_norm(x, eps=1e-5, mask=mask)
    assert y[~mask].equal(x[~mask])
    line = joined(normalized(row[real].double().tolist(), 1e-5) for row, real in zip(x[1:], mask[1:], strict=True))
    hold(worst, f"layer norm ({room.name})", y[1:][mask[1:]], line)


@pytest.mark.parametrize("width", [5000, 1 << 17])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_long_rows(dtype: torch.dtype, width: int, worst: Worst) -> None:
    """Longer than what is kept of weights, and cut into parts; every 37th output is looked at."""
    room = room_of("cpu")
    for case in ("random", "few bits")[width >> 17 :]:
        x = data.CASES[case](dtype, (1, width))
        parameters = affine(1, width)
        y = room.row_norm(x, eps=1e-5, **parameters)
        values = x[0].double().tolist()
        picked = slice(None, None, 37)
        line = normalized(
            values[picked],
            1e-5,
            weight=parameters["weight"][0, picked].tolist(),
            bias=parameters["bias"][0, picked].tolist(),
            of=statistics_of(values),
        )
        hold(worst, "layer norm (cpu)", y[0, picked], line)
