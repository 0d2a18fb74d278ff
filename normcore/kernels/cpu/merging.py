"""Operations on stacks of moments (K, 7, C)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from normcore.kernels.cpu.compiled import merge
from normcore.kernels.cpu.plan import workspace
from normcore.kernels.cpu.threads import share

_F64 = torch.float64
# Features times elements from which on a merge is worth sharing out.
_LARGE = 1 << 16


def compose(values: Tensor, factors: Tensor | None, *, between: bool) -> Tensor:
    """All K of values (K, 7, C) composed into (7, C), each with its weights first times factors (K, C)."""
    return composed(values, values.shape[1] * values.shape[2], factors, between=between)


def composed(values: Tensor, stride: int, factors: Tensor | None, *, between: bool) -> Tensor:
    """The same, of elements that are `stride` apart."""
    elements, _, channels = values.shape
    out = torch.empty(7, channels, dtype=_F64)
    run = merge.compose.of(_F64)
    source, target, scale = values.data_ptr(), out.data_ptr(), 0
    if factors is not None:
        factors = factors.expand(elements, channels).contiguous()
        scale = factors.data_ptr()

    def features(turns: int) -> None:
        run(source, elements, stride, channels, turns, scale, factors is not None, between, workspace.work, target)

    share(-(-channels // merge.TILE), max(1, _LARGE // merge.TILE // max(1, elements)), features)
    return out


def unbiased(values: Tensor, weight: float) -> Tensor:
    """values (K, 7, C), each of a total weight, with m2 = weight * m2 / (count - 1)."""
    out = torch.empty_like(values)
    elements, _, channels = values.shape
    merge.unbiased.of(_F64)(values.data_ptr(), elements, channels, weight, out.data_ptr())
    return out


def within(values: Tensor, *, max_count: float, max_magnitude: float, max_m2: float) -> bool:
    """Whether all of values (K, 7, C) are plainly moments of real values within these limits; NaN is in none."""
    elements, _, channels = values.shape
    wrong = ctypes.c_double()
    merge.within.of(_F64)(
        values.data_ptr(), elements, channels, max_count, max_magnitude, max_m2, ctypes.addressof(wrong)
    )
    return wrong.value == 0


def total(values: Tensor) -> Tensor:
    """The sum over the first axis of values (K, C), rounded once."""
    out = torch.empty(values.shape[1], dtype=_F64)
    merge.total.of(_F64)(values.data_ptr(), *values.shape, out.data_ptr())
    return out
