"""The definition of every loop over elements, in plain torch: computed in float64, rounded once, on any device.

It goes block by block, about a million elements each, so that temporary memory stays bounded whatever the input's size.
Every function that gives a tensor of x's shape writes it into `out` where one is given, which may be x itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from normcore import algebra, twofold
from normcore.algebra import Parts
from normcore.kernels.base import ChannelMoments, Coefficients, Rule, coefficients, output_dtype

# 8 MiB of float64: large enough that a merge (some 200 small operations) costs little beside a block's passes.
BLOCK_ELEMENTS = 1 << 20


def channel_moments(
    x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None, *, omit: bool = False
) -> ChannelMoments:
    """The moments of each channel of x (A, C, B).

    A block is shifted by its smallest value, then by its mean, and summed twice (the corrected two-pass algorithm), so
    a constant channel has an m2 of exactly 0; blocks merge in double-double.

    Args:
        x: (A, C, B), any real dtype.
        mask: bool, broadcasts to x; False is left out.
        weights: float64 (A, 1, 1), above 0 wherever the mask is True.
        omit: leave NaN and infinities out. Otherwise all but the count of a channel that has any is NaN.
    """
    parts, channels = [], x.shape[1]
    nonfinite = torch.zeros(channels, dtype=torch.float64, device=x.device)
    mask = None if mask is None else mask.expand(x.shape)
    for rows, columns in _channel_blocks(x):
        block = x[rows, :, columns].detach().double()
        valid = None if mask is None else mask[rows, :, columns]
        bad = ~torch.isfinite(block) if valid is None else ~torch.isfinite(block) & valid
        if bool(bad.any()):
            nonfinite += bad.sum((0, 2))
            if omit:
                valid = ~bad if valid is None else valid & ~bad
        parts.append(_block_moments(block, valid, None if weights is None else weights[rows]))
    if not parts:
        nothing = torch.zeros(channels, dtype=torch.float64, device=x.device)
        return ChannelMoments(algebra.packed(algebra.identity(nothing, nothing)), nonfinite)
    values = algebra.packed(parts[0] if len(parts) == 1 else algebra.reduce(algebra.stacked(parts)))
    if not omit:
        values[1:, nonfinite > 0] = torch.nan
    return ChannelMoments(values, nonfinite)


def channel_apply(x: Tensor, by: Coefficients, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Each channel of x (A, C, B) by its coefficients; where the mask is False, x stays as it is."""
    y = _output(x, out)
    mask = None if mask is None else mask.expand(x.shape)
    offset, rest, divisor, factor, shift = by.values[:, :, None]
    divisor = _nonzero(divisor)
    for rows, columns in _channel_blocks(x):
        block = x[rows, :, columns].detach()
        value = (block.double() - offset).sub_(rest).div_(divisor).mul_(factor).add_(shift).clamp_(by.low, by.high)
        y[rows, :, columns] = _padded(value, block, None if mask is None else mask[rows, :, columns])
    return y


def channel_norm(
    x: Tensor, rule: Rule, mask: Tensor | None = None, out: Tensor | None = None, *, omit: bool = False
) -> tuple[Tensor, ChannelMoments]:
    """Each channel of x (A, C, B) by a rule from its own moments, and those."""
    moments = channel_moments(x, mask, omit=omit)
    return channel_apply(x, coefficients(rule, moments.values), mask, out), moments


def row_norm(
    x: Tensor,
    *,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias along each row of x (R, K).

    Without `center` the mean is taken as 0: the root mean square. weight and bias are float64 (P, S), P a divisor of R
    and S of K: element (r, k) takes [r % P, k // (K / S)]. A divisor of 0 divides as 1. Where the mask is False, x
    stays as it is and counts for nothing.
    """
    y = _output(x, out)
    mask = None if mask is None else mask.expand(x.shape)
    weight, bias = (None if t is None else _per_element(t, x) for t in (weight, bias))
    for rows in _row_blocks(x):
        block, valid = x[rows].detach(), None if mask is None else mask[rows]
        value, var = (_centred if center else _uncentred)(block.double(), valid)
        value = value / _nonzero((var + eps).sqrt())
        value = value if weight is None else value * weight[rows]
        value = value if bias is None else value + bias[rows]
        y[rows] = _padded(value, block, valid)
    return y


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
    """`row_norm` of rows of different lengths in one arena x (E,): row r is x[starts[r] : starts[r] + lengths[r]].

    starts and lengths are int64 (R,), rows do not overlap; weight and bias are float64 (K,), K at least the greatest
    length, and begin anew with each row. What is in no row is not written.
    """
    y = _output(x, out)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if length == 0:
            continue
        row = x[start : start + length][None]
        scale, shift = (None if t is None else t[None, :length] for t in (weight, bias))
        y[start : start + length] = row_norm(row, eps=eps, center=center, weight=scale, bias=shift)[0]
    return y


def power_norm(x: Tensor, p: float, eps: float, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x / max(norm, eps) along each row of x (R, K); the p-norm is scaled by the largest magnitude."""
    y = _output(x, out)
    mask = None if mask is None else mask.expand(x.shape)
    for rows in _row_blocks(x):
        block = x[rows].detach()
        valid = None if mask is None else mask[rows]
        value = _real(block.double(), valid)
        largest = value.abs().amax(-1, keepdim=True)
        ratios = (value / _nonzero(largest)).abs()
        norm = largest if p == torch.inf else largest * ratios.pow(p).sum(-1, keepdim=True).pow(1 / p)
        y[rows] = _padded(value / _nonzero(norm.clamp(min=eps)), block, valid)
    return y


def neighbour_norm(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x / (k + alpha / size * sum of squares of the `size` channels around) ** beta, for x (N, C, L)."""
    y = _output(x, out)
    mask = None if mask is None else mask.expand(x.shape)
    channels = x.shape[1]
    before, after = (min(reach, channels) for reach in (size // 2, (size - 1) // 2))
    for rows in _row_blocks(x):
        block = x[rows].detach()
        valid = None if mask is None else mask[rows]
        value = _real(block.double(), valid)
        squares = torch.nn.functional.pad(value * value, (0, 0, before, after))
        total = squares.unfold(1, before + after + 1, 1).sum(-1)
        y[rows] = _padded(value / (k + alpha / size * total) ** beta, block, valid)
    return y


def compose(values: Tensor, factors: Tensor | None, *, between: bool) -> Tensor:
    """All K of values (K, 7, C) composed into (7, C), each with its weights first times factors (K, C)."""
    parts = algebra.normalised(algebra.unpacked(values))
    if factors is not None:
        parts = algebra.scale(parts, factors.expand_as(parts.n))
    return algebra.packed(algebra.normalised(algebra.reduce(parts, between=between)))


def unbiased(values: Tensor, weight: float) -> Tensor:
    """values (K, 7, C), each of a total weight, with m2 = weight * m2 / (count - 1): counts are 0 or above 1."""
    parts = algebra.normalised(algebra.unpacked(values))
    weights = weight * (parts.n > 0).to(parts.n)
    degrees = torch.where(parts.n > 0, parts.n - 1, 1.0)
    factor = twofold.div(twofold.from_double(weights), twofold.from_double(degrees))
    return algebra.packed(parts._replace(n=weights, m2=twofold.mul(parts.m2, factor)))


def within(values: Tensor, *, max_count: float, max_magnitude: float, max_m2: float) -> bool:
    """Whether all of values (K, 7, C) are plainly moments of real values within these limits; NaN is in none."""
    n, mean, m2, low, high = algebra.unpacked(values)
    fits = (
        ((n > 0) & (n <= max_count))
        & ((low >= -max_magnitude) & (low <= mean.hi) & (mean.hi <= high) & (high <= max_magnitude))
        & ((m2.hi >= 0) & (m2.hi <= max_m2))
        & ((mean.hi + mean.lo == mean.hi) & (m2.hi + m2.lo == m2.hi))
    )
    return bool((fits | (n == 0)).all())


def total(values: Tensor) -> Tensor:
    """The sum over the first axis of values (K, C), rounded once."""
    return twofold.total(twofold.from_double(values)).hi


def _channel_blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of A and B that cut x (A, C, B) into blocks."""
    if x.numel() == 0:
        return
    before, channels, after = x.shape
    columns = min(after, max(1, BLOCK_ELEMENTS // channels))
    rows = max(1, BLOCK_ELEMENTS // (channels * columns))
    for row in range(0, before, rows):
        for column in range(0, after, columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _row_blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the first axis; x itself, as one block, where it has none."""
    if x.numel() == 0:
        return
    rows = max(1, BLOCK_ELEMENTS * x.shape[0] // x.numel())
    for row in range(0, x.shape[0], rows):
        yield slice(row, row + rows)


class _Pass(NamedTuple):
    """Statistics over some axes, which stay as 1; all else float64 and broadcastable to x."""

    n: Tensor
    mean: Tensor
    rest: Tensor  # what rounding left out of the mean
    m2: Tensor
    min: Tensor
    max: Tensor
    deviation: Tensor  # x - mean, of x's shape; 0 where nothing is real


def _two_pass(x: Tensor, axes: tuple[int, ...], valid: Tensor | None, weights: Tensor | None = None) -> _Pass:
    """The statistics of float64 x over `axes`; valid and weights broadcast to x.

    Shifting by the smallest value leaves a constant exactly 0. The second mean, of what rounding left in the first,
    makes mean / deviation of 1e15 as good as the input.
    """
    weight = weights if valid is None else valid.double() if weights is None else valid * weights
    if weight is None:
        count = x.new_tensor(prod(x.shape[axis] for axis in axes))
    else:
        sizes = [x.shape[axis] if axis in axes else size for axis, size in enumerate(weight.shape)]
        count = weight.expand(sizes).sum(axes, keepdim=True)
    seen = count > 0
    n = torch.where(seen, count, 1.0)

    def total(values: Tensor) -> Tensor:
        return (values if weight is None else values * weight).sum(axes, keepdim=True)

    smallest = (x if valid is None else torch.where(valid, x, torch.inf)).amin(axes, keepdim=True)
    shift = torch.where(seen, smallest, 0.0)
    real = x if valid is None else torch.where(valid, x, shift)
    mean = shift + total(real - shift) / n
    deviation = real - mean
    off = total(deviation)
    m2 = (total(deviation * deviation) - off * (off / n)).clamp(min=0)
    largest = torch.where(seen, real.amax(axes, keepdim=True), -torch.inf)
    return _Pass(count, mean, off / n, m2, torch.where(seen, smallest, torch.inf), largest, deviation)


def _block_moments(x: Tensor, valid: Tensor | None, weights: Tensor | None) -> Parts:
    """The moments of one block: x float64 (a, C, b), valid (a, 1 or C, b), weights (a, 1, 1)."""
    over = _two_pass(x, (0, 2), valid, weights)
    count, mean, rest, m2, smallest, largest = (
        t.expand(1, x.shape[1], 1).reshape(x.shape[1]) for t in (over.n.reshape(1, -1, 1), *over[1:6])
    )
    return Parts(count, twofold.two_sum(mean, rest), twofold.from_double(m2), smallest, largest)


def _centred(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """x - mean of each row, and the variance."""
    over = _two_pass(x, (1,), valid)
    return over.deviation - over.rest, over.m2 / over.n.clamp(min=1)


def _uncentred(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """x, and the mean square of each row."""
    real = _real(x, valid)
    if valid is None:
        return real, (real * real).mean(1, keepdim=True)
    return real, (real * real).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)


def _per_element(values: Tensor, x: Tensor) -> Tensor:
    """Values (P, S) for each element of x (R, K)."""
    (rows, columns), (period, segments) = x.shape, values.shape
    shape = (rows // period, period, segments, columns // segments)
    return values[None, :, :, None].expand(shape).reshape(x.shape)


def _output(x: Tensor, out: Tensor | None) -> Tensor:
    return torch.empty(x.shape, dtype=output_dtype(x), device=x.device) if out is None else out


def _real(x: Tensor, valid: Tensor | None) -> Tensor:
    """x with 0 where nothing is real."""
    return x if valid is None else torch.where(valid, x, 0.0)


def _nonzero(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, 1.0, divisor)


def _padded(value: Tensor, x: Tensor, valid: Tensor | None) -> Tensor:
    """The value rounded to the output's type, and x where nothing is real."""
    rounded = value.to(output_dtype(x))
    return rounded if valid is None else torch.where(valid, rounded, x.to(rounded.dtype))
