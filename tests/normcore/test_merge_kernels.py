"""Merging, compiled and by the reference: the same float64s to the bit, so that a server may change between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normcore.kernels import reference
from normcore.moments import moments_of
from normcore.stack import MomentsStack

cpu = pytest.importorskip("normcore.kernels.cpu", reason="numba is not installed")

LIMITS = {"max_count": 2.0**53, "max_magnitude": 1e140, "max_m2": 1e300}


def stack(elements: int, features: int, seed: int = 0) -> Tensor:
    """Moments of very different weights and means; some of features that saw nothing, and hold rubbish there."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(elements, 7, features, dtype=torch.float64)
    for k in range(elements):
        rows = 2 + int(torch.randint(0, 50, (1,), generator=generator))
        x = 1e6 * k + torch.randn(rows, features, dtype=torch.float64, generator=generator)
        values[k] = MomentsStack.of([moments_of(x, 1)]).values[0]
    nothing = torch.rand(elements, features, generator=generator) < 0.2
    values.permute(0, 2, 1)[nothing] = torch.tensor([0.0, torch.nan, 1.0, -1.0, 0.0, 5.0, torch.inf]).double()
    return values


def assert_same(one: Tensor, other: Tensor) -> None:
    """Every bit of every row, low words too."""
    assert torch.equal(one.view(torch.int64), other.view(torch.int64))


@pytest.mark.parametrize(("elements", "features"), [(1, 1), (2, 3), (17, 5), (64, 33), (300, 4)])
@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_compose(elements: int, features: int, between: bool, scaled: bool) -> None:
    values = stack(elements, features)
    factors = None
    if scaled:
        factors = torch.rand(elements, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        factors[0] = 0
    out = cpu.compose(values, factors, between=between)
    assert_same(out, reference.compose(values, factors, between=between))


def test_compose_of_nothing_is_the_identity() -> None:
    values = torch.full((3, 7, 2), torch.nan, dtype=torch.float64)
    values[:, 0] = 0
    out = cpu.compose(values, None, between=True)
    assert out[:, 0].tolist() == [0, 0, 0, 0, 0, float("inf"), float("-inf")]
    assert torch.equal(out, reference.compose(values, None, between=True))


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_unbiased(weight: float) -> None:
    values = stack(9, 7)
    out = cpu.unbiased(values, weight)
    assert_same(out, reference.unbiased(values, weight))


@pytest.mark.parametrize("elements", [1, 2, 8, 33])
def test_total_rounds_once(elements: int) -> None:
    values = torch.randn(elements, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(elements))
    values[:, 1] *= 10.0 ** torch.arange(elements).remainder(30)
    values[-1, 2] = torch.inf
    out = cpu.total(values)
    assert torch.equal(out, reference.total(values))
    finite = [0, 1, 3, 4]
    assert out[finite].tolist() == [math.fsum(values[:, c].tolist()) for c in finite]


@pytest.mark.parametrize("row", range(7))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e300, 1e301, -0.5, 0.0, 1e-300])
def test_within(row: int, value: float) -> None:
    values = MomentsStack.of([moments_of(1 + torch.rand(5, 3, dtype=torch.float64), 1)]).values.clone()
    assert cpu.within(values, **LIMITS)
    values[0, row, 1] = value
    assert cpu.within(values, **LIMITS) is reference.within(values, **LIMITS)


def test_squares_that_overflow_are_infinite_and_never_nan() -> None:
    values = torch.zeros(2, 7, 1, dtype=torch.float64)
    values[:, 0] = 5
    for row in (1, 5, 6):
        values[:, row, 0] = torch.tensor([1e200, -1e200], dtype=torch.float64)
    out = cpu.compose(values, None, between=True)
    assert torch.equal(out[[0, 1, 3]], reference.compose(values, None, between=True)[[0, 1, 3]])
    assert out[3, 0] == float("inf")
