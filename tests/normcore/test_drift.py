from __future__ import annotations

from math import inf
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from normcore.drift import Drift, compare
from normcore.errors import ShapeMismatch


class Statistics(NamedTuple):
    mean: Tensor
    var: Tensor


def statistics(mean: list[float], var: list[float]) -> Statistics:
    return Statistics(torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64))


def test_drift_is_of_gaussians() -> None:
    base, other = statistics([1, 2, 3], [1, 4, 9]), statistics([1, 5, -3], [1, 2, 30])
    p, q = (Normal(side.mean, side.var.sqrt()) for side in (base, other))
    drift = compare(base, other)
    torch.testing.assert_close(drift.mean_shift, (other.mean - base.mean) / base.var.sqrt())
    torch.testing.assert_close(drift.var_ratio, other.var / base.var)
    torch.testing.assert_close(drift.symmetric_kl, kl_divergence(p, q) + kl_divergence(q, p))


@pytest.mark.parametrize(
    ("base", "other", "shift", "ratio", "divergence"),
    [
        ((1, 0), (1, 0), 0, 1, 0),
        ((1, 0), (2, 0), inf, 1, inf),
        ((2, 0), (1, 0), -inf, 1, inf),
        ((1, 0), (1, 4), 0, inf, inf),
        ((1, 4), (1, 0), 0, 0, inf),
        ((1, 4), (3, 0), 1, 0, inf),
        ((1, 4), (1, 4), 0, 1, 0),
    ],
)
def test_constants_have_answers_too(
    base: tuple[float, float], other: tuple[float, float], shift: float, ratio: float, divergence: float
) -> None:
    drift = compare(statistics([base[0]], [base[1]]), statistics([other[0]], [other[1]]))
    assert (drift.mean_shift.item(), drift.var_ratio.item(), drift.symmetric_kl.item()) == (shift, ratio, divergence)


def test_the_worst_come_first() -> None:
    drift = Drift(torch.tensor([0.0, -9, 3, 0, -5]), torch.ones(5), torch.tensor([1.0, inf, inf, 1, 2]))
    assert drift.worst_first().tolist() == [1, 2, 4, 0, 3]


def test_other_numbers_of_features_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="has 1 features; expected 2"):
        compare(statistics([1, 2], [1, 2]), statistics([1], [1]))
