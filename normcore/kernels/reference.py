"""The definition of every loop over elements, in plain torch: computed in float64, rounded once, on any device.

It goes block by block, about a million elements each, so that temporary memory stays bounded whatever the input's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from normcore import algebra, twofold
from normcore.algebra import Parts
from normcore.twofold import Twofold

# 8 MiB of float64: large enough that a merge (some 200 small operations) costs little beside a block's passes.
BLOCK_ELEMENTS = 1 << 20


def output_dtype(x: Tensor) -> torch.dtype:
    """Floating types stay; integers and bool become float32."""
    return x.dtype if x.dtype.is_floating_point else torch.float32


def channel_moments(
    x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None, *, omit: bool = False
) -> Parts:
    """The moments of each channel of x (A, C, B).

    A block is shifted by its smallest value, then by its mean, and summed twice (the corrected two-pass algorithm), so
    a constant channel has an m2 of exactly 0; blocks merge in double-double.

    Args:
        x: (A, C, B), any real dtype.
        mask: bool (A, 1 or C, B); False is left out.
        weights: float64 (A, 1, 1), above 0 wherever the mask is True.
        omit: leave NaN and infinities out; they propagate otherwise.

    Returns:
        Count of shape () where it is the same for all channels by construction, else (C,); the rest (C,).
    """
    parts = []
    for rows, columns in _channel_blocks(x):
        block = x[rows, :, columns].detach().double()
        valid = None if mask is None else mask[rows, :, columns]
        if omit and not bool((finite := torch.isfinite(block)).all()):
            valid = finite if valid is None else finite & valid
        parts.append(_block_moments(block, valid, None if weights is None else weights[rows]))
    if parts:
        return parts[0] if len(parts) == 1 else algebra.reduce(algebra.stacked(parts))
    nothing = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    return algebra.identity(nothing.new_zeros(()), nothing)


def channel_apply(
    x: Tensor,
    offset: Twofold,
    divisor: Tensor,
    factor: Tensor,
    shift: Tensor,
    *,
    mask: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """(x - offset) / divisor * factor + shift of each channel of x (A, C, B), clipped to low and high; 0 divides as 1.

    `offset`, `divisor`, `factor` and `shift` are float64 (C,); where the mask is False, x stays as it is.
    """
    y = torch.empty(x.shape, dtype=output_dtype(x), device=x.device)
    divisor = _nonzero(divisor)
    for rows, columns in _channel_blocks(x):
        block = x[rows, :, columns].detach()
        value = block.double() - offset.hi[:, None]
        value = value.sub_(offset.lo[:, None]).div_(divisor[:, None]).mul_(factor[:, None]).add_(shift[:, None])
        if low is not None or high is not None:
            value = value.clamp_(low, high)
        y[rows, :, columns] = _padded(value, block, None if mask is None else mask[rows, :, columns])
    return y


def row_moments(x: Tensor, kept: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population variance of x over all axes but the first `kept`; float64, of the kept axes' shape.

    Where nothing is real all three are 0.
    """
    out = torch.zeros(3, *x.shape[:kept], dtype=torch.float64, device=x.device)
    for rows in _row_blocks(x):
        over = _two_pass(x[rows].detach().double(), _trailing(x, kept), None if mask is None else mask[rows])
        shape = over.m2.shape[:kept]
        out[0, rows] = over.n.expand_as(over.m2).reshape(shape)
        out[1, rows] = (over.mean + over.rest).reshape(shape)
        out[2, rows] = (over.m2 / over.n.clamp(min=1)).reshape(shape)
    return out[0], out[1], out[2]


def row_norm(
    x: Tensor,
    kept: int,
    *,
    eps: float,
    std_eps: float = 0.0,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """(x - mean) / (sqrt(var + eps) + std_eps) * weight + bias, over all axes of x but the first `kept` (at least 1).

    Without `center` the mean is taken as 0: the root mean square. weight and bias are float64 and broadcast to x. A
    divisor of 0 divides as 1. Where the mask is False, x stays as it is.
    """
    y = torch.empty(x.shape, dtype=output_dtype(x), device=x.device)
    weight, bias = (None if t is None else t.expand(x.shape) for t in (weight, bias))
    for rows in _row_blocks(x):
        block, valid = x[rows].detach(), None if mask is None else mask[rows]
        value, var = (_centred if center else _uncentred)(block.double(), _trailing(x, kept), valid)
        value = value / _nonzero((var + eps).sqrt() + std_eps)
        value = value if weight is None else value * weight[rows]
        value = value if bias is None else value + bias[rows]
        y[rows] = _padded(value, block, valid)
    return y


def power_norm(x: Tensor, p: float, eps: float, mask: Tensor | None = None) -> Tensor:
    """x / max(norm, eps) along the last axis of x (R, K); the p-norm is scaled by the largest magnitude."""
    y = torch.empty(x.shape, dtype=output_dtype(x), device=x.device)
    for rows in _row_blocks(x):
        block = x[rows].detach()
        valid = None if mask is None else mask[rows]
        value = _real(block.double(), valid)
        largest = value.abs().amax(-1, keepdim=True)
        ratios = (value / _nonzero(largest)).abs()
        norm = largest if p == torch.inf else largest * ratios.pow(p).sum(-1, keepdim=True).pow(1 / p)
        y[rows] = _padded(value / _nonzero(norm.clamp(min=eps)), block, valid)
    return y


def neighbour_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, mask: Tensor | None = None) -> Tensor:
    """x / (k + alpha / size * sum of squares of the `size` channels around) ** beta, for x (N, C, L)."""
    y = torch.empty(x.shape, dtype=output_dtype(x), device=x.device)
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
    count = over.n.reshape(() if over.n.numel() == 1 else x.shape[1])
    mean, rest, m2, smallest, largest = (t.reshape(x.shape[1]) for t in over[1:6])
    return Parts(count, twofold.two_sum(mean, rest), twofold.from_double(m2), smallest, largest)


def _centred(x: Tensor, axes: tuple[int, ...], valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """x - mean and the variance."""
    over = _two_pass(x, axes, valid)
    return over.deviation - over.rest, over.m2 / over.n.clamp(min=1)


def _uncentred(x: Tensor, axes: tuple[int, ...], valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """x and its mean square."""
    real = _real(x, valid)
    if valid is None:
        return real, (real * real).mean(axes, keepdim=True)
    count = valid.expand_as(x).sum(axes, keepdim=True).clamp(min=1)
    return real, (real * real).sum(axes, keepdim=True) / count


def _trailing(x: Tensor, kept: int) -> tuple[int, ...]:
    return tuple(range(kept, x.dim()))


def _real(x: Tensor, valid: Tensor | None) -> Tensor:
    """x with 0 where nothing is real."""
    return x if valid is None else torch.where(valid, x, 0.0)


def _nonzero(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, 1.0, divisor)


def _padded(value: Tensor, x: Tensor, valid: Tensor | None) -> Tensor:
    """The value rounded to the output's type, and x where nothing is real."""
    rounded = value.to(output_dtype(x))
    return rounded if valid is None else torch.where(valid, rounded, x.to(rounded.dtype))
