"""How far statistics have moved, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from normcore.errors import ShapeMismatch


class MeanAndVariance(Protocol):
    """What is compared: an Estimate, say."""

    @property
    def mean(self) -> Tensor:
        """Shape (C,)."""

    @property
    def var(self) -> Tensor:
        """Shape (C,)."""


@dataclass(frozen=True, eq=False, slots=True)
class Drift:
    """How far each feature has moved from a base, float64 (C,); never NaN where the statistics are not.

    Args:
        mean_shift: (mean - base mean) / base deviation; 0 if the means are equal, else infinite where the base is
            constant.
        var_ratio: var / base var; 1 if both are 0, infinite if only the base's is.
        symmetric_kl: the symmetric Kullback-Leibler divergence (Jeffreys 1946) of two Gaussians, in nats, with v the
            variances and d the difference of means: ((v - v_b)^2 / (v v_b) + d^2 (1 / v + 1 / v_b)) / 2. It is 0 for
            equal statistics, and infinite where they differ and one variance is 0.
    """

    mean_shift: Tensor
    var_ratio: Tensor
    symmetric_kl: Tensor

    def worst_first(self) -> Tensor:
        """The features' indices: the largest divergence first; then the largest shift, then the smallest index."""
        by_shift = torch.argsort(self.mean_shift.abs(), descending=True, stable=True)
        return by_shift[torch.argsort(self.symmetric_kl[by_shift], descending=True, stable=True)]


def compare(base: MeanAndVariance, other: MeanAndVariance) -> Drift:
    """How far `other` has moved from `base`.

    Raises:
        ShapeMismatch: they are of different numbers of features.
    """
    if base.mean.shape != other.mean.shape:
        raise ShapeMismatch("other", f"has {other.mean.numel()} features; expected {base.mean.numel()}, as base")
    shift, spread = other.mean - base.mean, other.var - base.var
    by_base, by_other = (_ratio(shift, side.var.sqrt()) for side in (base, other))
    divergence = _ratio(spread, base.var) * _ratio(spread, other.var) + by_base.square() + by_other.square()
    return Drift(by_base, _ratio(other.var, base.var, nothing=1.0), divergence / 2)


def _ratio(a: Tensor, b: Tensor, nothing: float = 0.0) -> Tensor:
    """a / b, and `nothing` for 0 / 0."""
    return torch.where((a == 0) & (b == 0), nothing, a / b)
