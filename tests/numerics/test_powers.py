"""Rows by their p-norm and channels by their neighbours, against 80 digits."""

from __future__ import annotations

import math

import pytest
import torch

import normcore
from tests.numerics import data
from tests.numerics.conftest import Worst
from tests.numerics.data import FLOATS, INTEGERS
from tests.numerics.exact import beside_neighbours, by_power, joined
from tests.numerics.outputs import hold
from tests.numerics.rooms import Room


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_by_their_power_are_rounded_once(every_room: Room, dtype: torch.dtype, p: float, worst: Worst) -> None:
    for case in every_room.some(data.CASES):
        x = data.CASES[case](dtype, (3, 65))
        if not every_room.reads(x):
            continue
        for eps in (1e-12, 0.0):
            line = joined(by_power(row, p, eps) for row in x.double().tolist())
            hold(worst, f"power norm, p = {p:g} ({every_room.name})", every_room.power_norm(x, p, eps), line)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_by_their_power(room: Room, dtype: torch.dtype, p: float, worst: Worst) -> None:
    x = data.whole(dtype, (3, 65))
    line = joined(by_power(row, p, 1e-12) for row in x.double().tolist())
    hold(worst, f"power norm, p = {p:g} ({room.name})", room.power_norm(x, p, 1e-12), line, of=dtype)


def test_a_row_of_one_value_is_its_sign_and_zeros_stay(room: Room) -> None:
    for dtype in FLOATS:
        for value in (data.HUGE[dtype], -3.0, 0.0):
            x = torch.full((2, 1), value, dtype=dtype)
            for p in (1.0, 2.0, 3.0, math.inf):
                assert room.power_norm(x, p, 0.0).tolist() == [[math.copysign(1.0, value) if value else 0.0]] * 2
        assert room.power_norm(torch.empty(0, 3, dtype=dtype), 2.0, 0.0).shape == (0, 3)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_local_response_norm_is_rounded_once(dtype: torch.dtype, worst: Worst) -> None:
    shape = (2, 7, 5)
    made = [data.CASES[case](dtype, shape) for case in data.CASES] if dtype.is_floating_point else []
    for x in made or [data.whole(dtype, shape)]:
        for size in (1, 4, 5):
            y = normcore.local_response_norm(x, size, alpha=1e-2, beta=0.75, k=2.0)
            hold(worst, "local response norm", y, beside_neighbours(x, size, 1e-2, 0.75, 2.0), of=dtype)
