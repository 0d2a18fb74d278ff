"""Each channel of (A, C, B) by a rule from its own moments: in one launch where whole channels fit a tile."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore.kernels.base import ChannelMoments, Rule
from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.channel_apply import clipped, coefficients_of, mapped, rule_apply, rule_arguments
from normcore.kernels.cuda.column_moments import channel_moments
from normcore.kernels.cuda.elements import INF, about, centre, jit, least, most, raised, rounded, summed
from normcore.kernels.cuda.views import exact_in_float32, mask_view, output, stored


def channel_norm(
    x: Tensor, rule: Rule, mask: Tensor | None = None, out: Tensor | None = None, *, omit: bool = False
) -> tuple[Tensor, ChannelMoments]:
    """Each channel of x (A, C, B) by a rule from its own moments, and those."""
    before, channels, after = x.shape
    tile = tuning.whole_channel_tile(before, channels, after)
    if tile is None or x.numel() == 0:
        moments = channel_moments(x, mask, omit=omit)
        return rule_apply(x, rule, moments.values, mask, out), moments
    y = output(x, out)
    values = torch.empty(7, channels, dtype=torch.float64, device=x.device)
    nonfinite = torch.empty(channels, dtype=torch.float64, device=x.device)
    kind, sources, numbers, ends = rule_arguments(rule, values)
    valid, mask_strides = mask_view(mask, x)
    side_by_side = after == 1
    whole_channels[(tuning.ceil_div(channels, tile.columns) if side_by_side else channels,)](
        stored(x),
        valid,
        *sources[4:],
        y,
        values,
        nonfinite,
        before,
        channels,
        after,
        *mask_strides,
        *numbers,
        *ends,
        KIND=kind,
        CLIP=ends != (-torch.inf, torch.inf),
        FOLD=not side_by_side,
        OMIT=omit,
        DIVIDE=x.dtype == torch.float64,
        PASS=tl.float32 if exact_in_float32(x) else tl.float64,
        T_R=tile.rows,
        T_C=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return y, ChannelMoments(values, nonfinite)


@jit
def whole_channels(
    x: tl.tensor,
    mask: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    values: tl.tensor,
    nonfinite: tl.tensor,
    before: tl.tensor,
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
    FOLD: tl.constexpr,
    OMIT: tl.constexpr,
    DIVIDE: tl.constexpr,
    PASS: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
) -> None:
    """A channel (FOLD), or columns that are one each, in registers between load and store."""
    group = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, T_R).to(tl.int64)[:, None]
    lane = tl.arange(0, T_C).to(tl.int64)[None, :]
    if FOLD:
        channel = tl.full((1, 1), 0, tl.int64) + group
        place = (row * channels + channel) * after + lane
        marks = row * mask_a + channel * mask_c + lane * mask_b
        inside = (row < before) & (lane < after)
    else:
        channel = lane + group * T_C
        place = row * channels + channel
        marks = row * mask_a + channel * mask_c
        inside = (row < before) & (channel < channels)
    element = tl.load(x + place, mask=inside, other=0)
    narrow = raised(element, PASS)
    valid = inside
    if mask is not None:
        valid = inside & (tl.load(mask + marks, mask=inside, other=0) != 0)
    real = valid & (tl.abs(narrow) < INF)
    near, count = centre(narrow, real, FOLD)
    value = narrow.to(tl.float64)
    deviation = tl.where(real, value - near, 0.0)
    failed = summed((valid & (real == 0)).to(tl.int32), FOLD)
    n = (count if OMIT else count + failed).to(tl.float64)
    mean, rest, m2 = about(near.to(tl.float64), n, summed(deviation, FOLD), summed(deviation * deviation, FOLD))
    smallest = least(tl.where(real, narrow, INF), FOLD).to(tl.float64)
    largest = most(tl.where(real, narrow, -INF), FOLD).to(tl.float64)
    if not OMIT:
        spoilt = tl.where(failed > 0, float("nan"), 0.0)
        mean, rest, m2 = mean + spoilt, rest + spoilt, m2 + spoilt
        smallest, largest = smallest + spoilt, largest + spoilt

    held = channel < channels
    to = values + channel
    tl.store(to, n, mask=held)
    tl.store(to + channels, mean, mask=held)
    tl.store(to + 2 * channels, rest, mask=held)
    tl.store(to + 3 * channels, m2, mask=held)
    tl.store(to + 4 * channels, tl.where(m2 != m2, m2, 0.0), mask=held)
    tl.store(to + 5 * channels, smallest, mask=held)
    tl.store(to + 6 * channels, largest, mask=held)
    tl.store(nonfinite + channel, failed.to(tl.float64), mask=held)

    factor, shift = tl.zeros_like(mean) + 1.0, tl.zeros_like(mean)
    if weight is not None:
        factor = tl.load(weight + channel, mask=held, other=1.0)
    if bias is not None:
        shift = tl.load(bias + channel, mask=held, other=0.0)
    if KIND == 1:
        offset, divisor = mean, m2
    else:
        offset, divisor = smallest, largest
    offset, rest, divisor, factor, shift = coefficients_of(offset, rest, divisor, n, factor, shift, number, other, KIND)
    result = mapped(value, offset, rest, divisor, factor, shift, DIVIDE)
    if CLIP:
        result = clipped(result, low, high)
    result = rounded(result, out.dtype.element_ty)
    if mask is not None:
        result = tl.where(valid, result, element.to(out.dtype.element_ty))
    tl.store(out + place, result, mask=inside)
