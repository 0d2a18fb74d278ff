"""Each channel of (A, C, B) by its own coefficients: given, or made on the spot from packed moments and a rule.

Elementwise and contiguous, whatever the layout: (A, C * B) by columns, whose coefficients stay in registers while a
program goes down the rows; or, where B is long, (A * C, B) by rows, whose coefficients are one number each.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore.kernels.base import COUNT, M2, MAX, MEAN, MEAN_LOW, MIN, Coefficients, Rule, ToRange
from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.elements import LARGEST, jit, nonzero, raised, rounded
from normcore.kernels.cuda.views import mask_view, output, stored

# What coefficients come from.
GIVEN = tl.constexpr(0)
TO_UNIT = tl.constexpr(1)
TO_RANGE = tl.constexpr(2)


def channel_apply(x: Tensor, by: Coefficients, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Each channel of x (A, C, B) by its coefficients: see `normcore.kernels.reference.channel_apply`."""
    offset, rest, divisor, factor, shift = by.values.contiguous()
    sources = (offset, rest, divisor, None, factor, shift)
    return _applied(x, mask, out, 0, sources, (0.0, 0.0), (by.low, by.high))


def rule_apply(x: Tensor, rule: Rule, values: Tensor, mask: Tensor | None, out: Tensor | None) -> Tensor:
    """Each channel of x (A, C, B) by what a rule makes of packed moments (7, C)."""
    kind, sources, numbers, ends = rule_arguments(rule, values)
    return _applied(x, mask, out, kind, sources, numbers, ends)


def rule_arguments(
    rule: Rule, values: Tensor
) -> tuple[int, tuple[Tensor | None, ...], tuple[float, float], tuple[float, float]]:
    """A rule's kind, its six sources of coefficients, its two numbers, and the ends within which results are kept."""
    if isinstance(rule, ToRange):
        ends = (rule.low, rule.high) if rule.clip else (-torch.inf, torch.inf)
        return 2, (values[MIN], None, values[MAX], None, None, None), (rule.low, rule.high), ends
    sources = (values[MEAN], values[MEAN_LOW], values[M2], values[COUNT], rule.weight, rule.bias)
    return 1, sources, (rule.eps, rule.std_eps), (-rule.clip, rule.clip)


def _applied(
    x: Tensor,
    mask: Tensor | None,
    out: Tensor | None,
    kind: int,
    sources: tuple[Tensor | None, ...],
    numbers: tuple[float, float],
    ends: tuple[float, float],
) -> Tensor:
    y = output(x, out)
    if x.numel() == 0:
        return y
    before, channels, after = x.shape
    by_rows = after >= 1024 or (after >= 64 and after % 16 == 0)
    rows, width = (before * channels, after) if by_rows else (before, channels * after)
    tile = tuning.apply_tile(width, x.element_size(), fold=by_rows)
    blocks, tiles = tuning.ceil_div(width, tile.columns), tuning.ceil_div(rows, tile.rows)
    programs = tuning.ceil_div(tuning.PROGRAMS * tuning.multiprocessors(x.device), blocks)
    valid, mask_strides = mask_view(mask, x)
    channel_map[(blocks, min(tiles, programs, 65535))](
        stored(x),
        valid,
        y,
        *sources,
        rows,
        width,
        channels,
        after,
        *mask_strides,
        *numbers,
        *ends,
        KIND=kind,
        CLIP=ends != (-torch.inf, torch.inf),
        BY_ROWS=by_rows,
        DIVIDE=x.dtype == torch.float64,
        T_R=tile.rows,
        T_C=tile.columns,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return y


@jit
def coefficients_of(
    offset: tl.tensor,
    rest: tl.tensor,
    divisor: tl.tensor,
    count: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
    number: tl.tensor,
    other: tl.tensor,
    KIND: tl.constexpr,
) -> tl.tensor:
    """Offset, its low word, divisor, factor and shift; numbers are eps and std_eps, or low and high."""
    if KIND == TO_UNIT:
        divisor = tl.sqrt(divisor / tl.where(count > 0, count, 1.0) + number) + other
    if KIND == TO_RANGE:
        divisor = divisor - offset
        rest = tl.zeros_like(offset)
        factor = rest + (other - number)
        shift = rest + number
    return offset, rest, nonzero(divisor), factor, shift


@jit
def clipped(value: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """The value within low and high; NaN stays."""
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@jit
def mapped(
    value: tl.tensor,
    offset: tl.tensor,
    rest: tl.tensor,
    divisor: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
    DIVIDE: tl.constexpr,
) -> tl.tensor:
    """(value - offset - rest) / divisor * factor + shift.

    Only float64 results show the difference of a true division, and only they have the time for one: narrower
    elements take two float64 operations each.
    """
    if DIVIDE:
        return (value - offset - rest) / divisor * factor + shift
    scale = factor / divisor
    # Infinite only for a subnormal divisor, which must still leave 0 at 0.
    scale = tl.where(scale > LARGEST, LARGEST, tl.where(scale < -LARGEST, -LARGEST, scale))
    return (value - offset) * scale + (shift - rest * scale)


@jit
def _coefficients(
    offset: tl.tensor,
    rest: tl.tensor,
    divisor: tl.tensor,
    count: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
    number: tl.tensor,
    other: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    KIND: tl.constexpr,
) -> tl.tensor:
    """The coefficients of these channels, loaded from their sources."""
    nothing = tl.zeros(channel.shape, tl.float64)
    low_word, n, scale, start = nothing, nothing, nothing + 1.0, nothing
    first = tl.load(offset + channel, mask=inside, other=0.0)
    second = tl.load(divisor + channel, mask=inside, other=1.0)
    if rest is not None:
        low_word = tl.load(rest + channel, mask=inside, other=0.0)
    if count is not None:
        n = tl.load(count + channel, mask=inside, other=1.0)
    if factor is not None:
        scale = tl.load(factor + channel, mask=inside, other=1.0)
    if shift is not None:
        start = tl.load(shift + channel, mask=inside, other=0.0)
    return coefficients_of(first, low_word, second, n, scale, start, number, other, KIND)


@jit
def channel_map(
    x: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    offset: tl.tensor,
    rest: tl.tensor,
    divisor: tl.tensor,
    count: tl.tensor,
    factor: tl.tensor,
    shift: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    after: tl.tensor,
    mask_a: tl.tensor,
    mask_c: tl.tensor,
    mask_b: tl.tensor,
    number: tl.float64,
    other: tl.float64,
    low: tl.float64,
    high: tl.float64,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    BY_ROWS: tl.constexpr,
    DIVIDE: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """One block of columns, and every so many tiles of rows down it."""
    column = (tl.arange(0, T_C).to(tl.int64) + tl.program_id(0).to(tl.int64) * T_C)[None, :]
    if BY_ROWS:
        marks = column * mask_b
    else:
        channel = column // after
        marks = channel * mask_c + column % after * mask_b
        o, r, d, f, s = _coefficients(
            offset, rest, divisor, count, factor, shift, number, other, channel, column < width, KIND
        )
    for tile in tl.range(tl.program_id(1), tl.cdiv(rows, T_R), tl.num_programs(1), num_stages=STAGES):
        row = (tl.arange(0, T_R) + tl.full((T_R,), 0, tl.int64) + tile * T_R)[:, None]
        inside = (row < rows) & (column < width)
        element = tl.load(x + row * width + column, mask=inside, other=0)
        if BY_ROWS:
            channel = row % channels
            o, r, d, f, s = _coefficients(
                offset, rest, divisor, count, factor, shift, number, other, channel, row < rows, KIND
            )
        value = mapped(raised(element, tl.float64), o, r, d, f, s, DIVIDE)
        if CLIP:
            value = clipped(value, low, high)
        result = rounded(value, out.dtype.element_ty)
        if mask is not None:
            place = row // channels * mask_a + row % channels * mask_c if BY_ROWS else row * mask_a
            real = tl.load(mask + place + marks, mask=inside, other=0) != 0
            result = tl.where(real, result, element.to(out.dtype.element_ty))
        tl.store(out + row * width + column, result, mask=inside)
