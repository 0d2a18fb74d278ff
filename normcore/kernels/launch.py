"""The one place that chooses a kernel, by device: the CPU's where numba is installed, CUDA's where Triton is, and the
reference everywhere else; it also does what a compiled kernel is to do that is not there yet.

Operations over elements take tensors that lie densely in memory in the order of the `shape` beside them, (A, C, B) or
(R, K), whatever their own; they give tensors like x, or fill `out`. Parameters are float32 or float64, all of one type,
dense, and on x's device.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from normcore.kernels import reference
from normcore.kernels.base import (
    ChannelMoments,
    Coefficients,
    Launch,
    NotCompiled,
    Rule,
    ToUnit,
    output_dtype,
)

Shape3 = tuple[int, int, int]
Shape2 = tuple[int, int]


def prepare() -> None:
    """Load what is compiled of what every server uses: half a second of its start."""
    x = torch.ones(2, 1, 1)
    for rule in (ToUnit(0.0), ToUnit(0.0, weight=torch.ones(1, dtype=torch.float64))):
        channel_norm(x, (2, 1, 1), rule)
    values = channel_moments(x, (2, 1, 1)).values
    compose(values[None], None, between=True)
    unbiased(2 * values[None], 1.0)
    total(values)
    within(values[None], max_count=1.0, max_magnitude=1.0, max_m2=1.0)
    standardize(x, (2, 1, 1), values[0], values[0], 0.0)
    row_norm(x, (2, 1), eps=0.0)


def channel_moments(
    x: Tensor, shape: Shape3, mask: Tensor | None = None, weights: Tensor | None = None, *, omit: bool = False
) -> ChannelMoments:
    """The moments of each channel of x (A, C, B): see reference.channel_moments."""
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.channel_moments(x, shape, mask, weights, omit=omit)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    return _room(x).channel_moments(_seen(x, shape), mask, weights, omit=omit)  # type: ignore[no-any-return]


def channel_apply(
    x: Tensor, shape: Shape3, by: Coefficients, mask: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Each channel of x (A, C, B) by its coefficients; where the mask is False, x stays as it is."""
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.channel_apply(x, shape, by, mask, out)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    y = _output(x, out)
    _room(x).channel_apply(_seen(x, shape), by, mask, _seen(y, shape))
    return y


def channel_norm(
    x: Tensor, shape: Shape3, rule: Rule, mask: Tensor | None = None, out: Tensor | None = None, *, omit: bool = False
) -> tuple[Tensor, ChannelMoments]:
    """Each channel of x (A, C, B) by a rule from its own moments, and those."""
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.channel_norm(x, shape, rule, mask, out, omit=omit)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    y = _output(x, out)
    _, moments = _room(x).channel_norm(_seen(x, shape), rule, mask, _seen(y, shape), omit=omit)
    return y, moments


def standardize(
    x: Tensor,
    shape: Shape3,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    clip: float = torch.inf,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, within plus and minus clip, of each channel of x (A, C, B).

    The mean and the population variance are float64 (C,).
    """
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.standardize(x, shape, mean, var, eps, weight, bias, clip, mask, out)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    factor, shift = one if weight is None else weight.double(), zero if bias is None else bias.double()
    by = Coefficients.of(mean, zero, (var + eps).sqrt(), factor.reshape(-1), shift.reshape(-1), -clip, clip)
    return channel_apply(x, shape, by, mask, out)


def standardize_like(
    x: Tensor,
    shape: Shape3,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    clip: float = torch.inf,
) -> Launch | None:
    """`standardize`, ready for tensors like x, which are not empty; None where nothing is gained by that."""
    return cpu.standardize_like(x, shape, mean, var, eps, weight, bias, clip) if (cpu := _cpu_of(x)) else None


def row_norm(
    x: Tensor,
    shape: Shape2,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    per: Shape2 = (1, 1),
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias along each row of x (R, K), weight and bias being `per`, (P, S).

    See reference.row_norm.
    """
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.row_norm(x, shape, eps, center, weight, bias, per, mask, out)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    y = _output(x, out)
    weight, bias = (None if one is None else one.reshape(per) for one in (weight, bias))
    _room(x).row_norm(_seen(x, shape), eps=eps, center=center, weight=weight, bias=bias, mask=mask, out=_seen(y, shape))
    return y


def row_norm_like(
    x: Tensor, shape: Shape2, eps: float, center: bool = True, weight: Tensor | None = None, bias: Tensor | None = None
) -> Launch | None:
    """`row_norm`, weight and bias being (1, K), ready for tensors like x, which are not empty; None as above."""
    return cpu.row_norm_like(x, shape, eps, center, weight, bias) if (cpu := _cpu_of(x)) else None


def row_norm_ragged(
    x: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`row_norm` of rows of different lengths in one arena x (E,): see reference.row_norm_ragged."""
    how: dict[str, Any] = {"eps": eps, "center": center, "weight": weight, "bias": bias, "out": out}
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.row_norm_ragged(x, starts, lengths, **how)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    return _room(x).row_norm_ragged(x, starts, lengths, **how)  # type: ignore[no-any-return]


def power_norm(
    x: Tensor, shape: Shape2, p: float, eps: float, mask: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x / max(norm, eps) along each row of x (R, K), with the p-norm."""
    if x.is_cpu and (cpu := _cpu()):
        try:
            return cpu.power_norm(x, shape, p, eps, mask, out)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    y = _output(x, out)
    _room(x).power_norm(_seen(x, shape), p, eps, mask, _seen(y, shape))
    return y


def neighbour_norm(
    x: Tensor,
    shape: Shape3,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x / (k + alpha / size * sum of squares of the `size` channels around) ** beta, for x (N, C, L)."""
    y = _output(x, out)
    reference.neighbour_norm(_seen(x, shape), size, alpha, beta, k, mask, _seen(y, shape))
    return y


def compose(values: Tensor, factors: Tensor | None, *, between: bool) -> Tensor:
    """All K of values (K, 7, C) composed into (7, C), each with its weights first times factors (K, C).

    `between` says whether the spread of the means is part of m2.
    """
    if (cpu := _merges(values)) is not None:
        try:
            return cpu.compose(values, factors, between=between)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    return reference.compose(values, factors, between=between)


def unbiased(values: Tensor, weight: float) -> Tensor:
    """values (K, 7, C), each of a total weight, with m2 = weight * m2 / (count - 1): counts are 0 or above 1."""
    if (cpu := _merges(values)) is not None:
        try:
            return cpu.unbiased(values, weight)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    return reference.unbiased(values, weight)


def within(values: Tensor, *, max_count: float, max_magnitude: float, max_m2: float) -> bool:
    """Whether all of values (K, 7, C) are plainly moments of real values within these limits.

    Plainly: counts above 0, m2 at least 0, min <= mean <= max, low words below half an ulp of the high ones.
    """
    limits = {"max_count": max_count, "max_magnitude": max_magnitude, "max_m2": max_m2}
    if (cpu := _merges(values)) is not None:
        try:
            return cpu.within(values, **limits)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    return reference.within(values, **limits)


def total(values: Tensor) -> Tensor:
    """The sum over the first axis of values (K, C), rounded once."""
    if (cpu := _merges(values)) is not None:
        try:
            return cpu.total(values)  # type: ignore[no-any-return]
        except NotCompiled:
            pass
    return reference.total(values)


# What follows looks at a few numbers of small tensors. As views of numpy on the CPU that takes a microsecond and keeps
# the GIL; each operation of torch takes several, and gives the GIL away.


def any_zero(counts: Tensor) -> bool:
    """Whether any of counts (C,) is 0."""
    return bool(((counts.numpy() if counts.is_cpu else counts) == 0).any())


def one_for_all(count: Tensor) -> Tensor:
    """A count (C,) as one number () where it is the same for all features."""
    numbers = count.numpy() if count.is_cpu else count
    return count[0] if numbers.shape[0] and bool((numbers == numbers[0]).all()) else count


def _merges(values: Tensor) -> Any:
    """The CPU's room, where it can take these values."""
    return _cpu() if values.is_cpu and values.is_contiguous() else None


def _cpu_of(x: Tensor) -> Any:
    """The CPU's room, where it can take x."""
    return _cpu() if x.is_cpu else None


def _room(x: Tensor) -> Any:
    """The room of a tensor that the CPU's does not take."""
    return (_cuda() if x.is_cuda else None) or reference


def _seen(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Dense memory in another shape, whatever the order of x's own axes."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * max(1, shape[axis])
    return x.detach().as_strided(shape, strides)


def _output(x: Tensor, out: Tensor | None) -> Tensor:
    return torch.empty_like(x, dtype=output_dtype(x), requires_grad=False) if out is None else out


@cache
def _cpu() -> Any:
    return importlib.import_module("normcore.kernels.cpu") if importlib.util.find_spec("numba") else None


@cache
def _cuda() -> Any:
    return importlib.import_module("normcore.kernels.cuda") if importlib.util.find_spec("triton") else None
