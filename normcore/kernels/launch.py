"""The one place that chooses a kernel: compiled on the CPU where numba is installed, the reference everywhere else."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from normcore.kernels import reference


def prepare() -> None:
    """Load what is compiled, and compile what is not: a second or two, better spent before the first request."""
    values = torch.ones(1, 7, 1, dtype=torch.float64)
    compose(values, None, between=True)
    unbiased(2 * values, 1.0)
    total(values[0])
    within(values, max_count=1.0, max_magnitude=1.0, max_m2=1.0)


def compose(values: Tensor, factors: Tensor | None, *, between: bool) -> Tensor:
    """All K of values (K, 7, C) composed into (7, C), each with its weights first times factors (K, C).

    `between` says whether the spread of the means is part of m2.
    """
    if (compiled := _compiled(values)) is None:
        return reference.compose(values, factors, between=between)
    out = torch.empty(values.shape[1:], dtype=torch.float64)
    scale = torch.empty(0, 0, dtype=torch.float64) if factors is None else factors.expand(values[:, 0].shape)
    compiled.compose(values.numpy(), scale.contiguous().numpy(), between, out.numpy())
    return out


def unbiased(values: Tensor, weight: float) -> Tensor:
    """values (K, 7, C), each of a total weight, with m2 = weight * m2 / (count - 1): counts are 0 or above 1."""
    if (compiled := _compiled(values)) is None:
        return reference.unbiased(values, weight)
    out = torch.empty(values.shape, dtype=torch.float64)
    compiled.unbiased(values.numpy(), weight, out.numpy())
    return out


def within(values: Tensor, *, max_count: float, max_magnitude: float, max_m2: float) -> bool:
    """Whether all of values (K, 7, C) are plainly moments of real values within these limits.

    Plainly: counts above 0, m2 at least 0, min <= mean <= max, low words below half an ulp of the high ones.
    """
    if (compiled := _compiled(values)) is None:
        return reference.within(values, max_count=max_count, max_magnitude=max_magnitude, max_m2=max_m2)
    return bool(compiled.within(values.numpy(), max_count, max_magnitude, max_m2))


def total(values: Tensor) -> Tensor:
    """The sum over the first axis of values (K, C), rounded once."""
    if (compiled := _compiled(values)) is None:
        return reference.total(values)
    out = torch.empty(values.shape[1], dtype=torch.float64)
    compiled.total(values.numpy(), out.numpy())
    return out


# What follows looks at a few numbers of small tensors. As views of numpy on the CPU that takes a microsecond and keeps
# the GIL; each operation of torch takes several, and gives the GIL away.


def any_zero(counts: Tensor) -> bool:
    """Whether any of counts (C,) is 0."""
    return bool(((counts.numpy() if counts.is_cpu else counts) == 0).any())


def one_for_all(count: Tensor) -> Tensor:
    """A count (C,) as one number () where it is the same for all features."""
    numbers = count.numpy() if count.is_cpu else count
    return count[0] if numbers.shape[0] and bool((numbers == numbers[0]).all()) else count


def _compiled(values: Tensor) -> Any:
    """The compiled kernels, where they can take these values."""
    return _cpu() if values.is_cpu and values.is_contiguous() else None


@cache
def _cpu() -> Any:
    return importlib.import_module("normcore.kernels.cpu") if importlib.util.find_spec("numba") else None
