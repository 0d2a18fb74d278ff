"""The functions that callers have, on random values of every floating type, held as the kernels below them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import normcore
from normcore.kernels.base import Coefficients
from tests.numerics import data
from tests.numerics.conftest import Worst
from tests.numerics.data import FLOATS
from tests.numerics.exact import (
    Line,
    applied,
    beside_neighbours,
    by_power,
    joined,
    normalized,
)
from tests.numerics.outputs import hold

# x is (N, C, L).
N, C, L = 3, 4, 10
WEIGHT, BIAS = data.normal(C, seed=1), data.normal(C, seed=2)
MEAN, VAR = data.normal(C, seed=3), data.normal(C, seed=4).abs() + 0.1
Lines = Callable[[list[list[list[float]]]], Line]


def of_channels(x: list[list[list[float]]], one: Callable[[list[float], int], Line]) -> Line:
    """A line of each channel over all samples, back in the order of memory."""
    lines = [one([value for sample in x for value in sample[c]], c) for c in range(C)]
    order = [(c, n) for n in range(N) for c in range(C)]
    return joined(Line(lines[c].outputs[n * L : n * L + L], lines[c].terms[n * L : n * L + L]) for c, n in order)


def affine(c: int, count: int) -> dict[str, list[float]]:
    return {"weight": [float(WEIGHT[c])] * count, "bias": [float(BIAS[c])] * count}


def by(offset: Tensor, divisor: Tensor, factor: Tensor, shift: Tensor) -> Coefficients:
    return Coefficients.of(offset, torch.zeros_like(offset), divisor, factor, shift)


# Each function, and what it is to give of x as nested lists.
PUBLIC: dict[str, tuple[Callable[[Tensor], Tensor], Lines]] = {
    "layer_norm": (
        lambda x: normcore.layer_norm(x, (C, L)),
        lambda x: joined(normalized([v for row in sample for v in row], 1e-5) for sample in x),
    ),
    "rms_norm": (
        lambda x: normcore.rms_norm(x, L, eps=1e-6),
        lambda x: joined(normalized(row, 1e-6, center=False) for sample in x for row in sample),
    ),
    "group_norm": (
        lambda x: normcore.group_norm(x, 2, weight=WEIGHT, bias=BIAS),
        lambda x: joined(
            normalized(
                sample[g] + sample[g + 1],
                1e-5,
                weight=affine(g, L)["weight"] + affine(g + 1, L)["weight"],
                bias=affine(g, L)["bias"] + affine(g + 1, L)["bias"],
            )
            for sample in x
            for g in (0, 2)
        ),
    ),
    "instance_norm": (
        lambda x: normcore.instance_norm(x, weight=WEIGHT, bias=BIAS),
        lambda x: joined(normalized(row, 1e-5, **affine(c, L)) for sample in x for c, row in enumerate(sample)),
    ),
    "adaptive_instance_norm": (
        lambda x: normcore.adaptive_instance_norm(x, BIAS, WEIGHT),
        lambda x: joined(normalized(row, 1e-5, **affine(c, L)) for sample in x for c, row in enumerate(sample)),
    ),
    "batch_norm": (
        lambda x: normcore.batch_norm(x, eps=1e-5, weight=WEIGHT, bias=BIAS)[0],
        lambda x: of_channels(x, lambda row, c: normalized(row, 1e-5, **affine(c, len(row)))),
    ),
    "standardize": (
        lambda x: normcore.standardize(x, MEAN, VAR, eps=1e-5, weight=WEIGHT, bias=BIAS, channel_axis=1),
        lambda x: of_channels(x, lambda row, c: applied(row, by(MEAN, (VAR + 1e-5).sqrt(), WEIGHT, BIAS), c)),
    ),
    "min_max": (
        lambda x: normcore.min_max(x, MEAN, MEAN + VAR, channel_axis=1),
        lambda x: of_channels(
            x, lambda row, c: applied(row, by(MEAN, (MEAN + VAR) - MEAN, torch.ones(C).double(), 0 * MEAN), c)
        ),
    ),
    "mean_variance_norm": (
        lambda x: normcore.mean_variance_norm(x, (0, 2)),
        lambda x: of_channels(x, lambda row, _: normalized(row, 0.0, std_eps=1e-9)),
    ),
    "lp_norm": (
        lambda x: normcore.lp_norm(x, 2.0, 2),
        lambda x: joined(by_power(row, 2.0, 1e-12) for sample in x for row in sample),
    ),
    "local_response_norm": (
        lambda x: normcore.local_response_norm(x, 3),
        lambda x: beside_neighbours(torch.tensor(x, dtype=torch.float64), 3, 1e-4, 0.75, 1.0),
    ),
    "ragged_row_norm": (
        lambda x: normcore.ragged_row_norm(x.flatten(), torch.full((N * C,), L)),
        lambda x: joined(normalized(row, 1e-5) for sample in x for row in sample),
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_callers_have_is_rounded_once(dtype: torch.dtype, name: str, worst: Worst) -> None:
    x = data.CASES["random"](dtype, (N, C, L))
    norm, exact = PUBLIC[name]
    y = norm(x)
    assert y.dtype == dtype
    hold(worst, f"normcore.{name}", y, exact(x.double().tolist()))


def test_channels_last_is_as_good(worst: Worst) -> None:
    for dtype in FLOATS:
        x = data.CASES["random"](dtype, (N, C, 2, 5)).to(memory_format=torch.channels_last)
        y, _ = normcore.batch_norm(x, eps=1e-5)
        exact = of_channels(x.reshape(N, C, L).double().tolist(), lambda row, _: normalized(row, 1e-5))
        hold(worst, "normcore.batch_norm, channels last", y.reshape(N, C, L), exact)
