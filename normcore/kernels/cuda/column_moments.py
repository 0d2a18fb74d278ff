"""Moments of the channels of (A, C, B), in pieces.

x is read once, in place. Where B is small its (C, B) are columns side by side, reduced over A; else the A rows of B of
one channel are reduced whole. A program sums deviations and their squares, in float64, about the mean of the
first tile in which a channel has anything real: per element of the tile, and over the tile at its end. For a mean that
drifts on, the difference of the two sums cancels at most a factor of the number of tiles: 10 of 53 bits for a thousand.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore import algebra
from normcore.kernels.base import ChannelMoments
from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.elements import INF, about, centre, jit, least, most, raised, summed
from normcore.kernels.cuda.merge_moments import merged
from normcore.kernels.cuda.views import exact_in_float32, mask_view, stored

# Below it, (C, B) are columns side by side: rows that short would leave a warp's load half empty.
SHORTEST_ROW = 32


def channel_moments(
    x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None, *, omit: bool = False
) -> ChannelMoments:
    """The moments of each channel of x (A, C, B): see `normcore.kernels.reference.channel_moments`."""
    before, channels, after = x.shape
    nothing = torch.zeros(channels, dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return ChannelMoments(algebra.packed(algebra.identity(nothing, nothing)), nothing)
    fold = after >= SHORTEST_ROW
    width, groups_of = (after, channels) if fold else (channels * after, 0)
    tile = tuning.moments_tile(before, width, x.element_size(), fold=fold)
    across = tuning.ceil_div(width, tile.columns)
    tiles = tuning.ceil_div(before, tile.rows) * (across if fold else 1)
    groups = groups_of or across
    count = tuning.pieces(tiles, groups, tuning.multiprocessors(x.device))
    final = count == 1 and (fold or after == 1)
    columns = channels if fold else width
    partials = torch.empty(count, 7, columns, dtype=torch.float64, device=x.device)
    nonfinite = torch.empty(count, columns, dtype=torch.float64, device=x.device)
    valid, mask_strides = mask_view(mask, x)
    column_moments[(groups, count)](
        stored(x),
        valid,
        weights,
        partials,
        nonfinite,
        before,
        width,
        columns,
        channels * after,
        after,
        across,
        tiles,
        tuning.ceil_div(tiles, count),
        0 if weights is None else weights.stride(0),
        *mask_strides,
        FOLD=fold,
        OMIT=omit,
        FINAL=final,
        PASS=tl.float32 if exact_in_float32(x) else tl.float64,
        T_R=tile.rows,
        T_C=tile.columns,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    if final:
        return ChannelMoments(partials[0], nonfinite[0])
    per_channel = 1 if fold else after
    return merged(partials, nonfinite, channels, per_channel, omit=omit)


@jit
def _elements(
    x: tl.tensor,
    mask: tl.tensor,
    tile: tl.tensor,
    group: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    step: tl.tensor,
    after: tl.tensor,
    across: tl.tensor,
    mask_a: tl.tensor,
    mask_c: tl.tensor,
    mask_b: tl.tensor,
    FOLD: tl.constexpr,
    PASS: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
) -> tl.tensor:
    """The elements of a tile, which of them are real, and their rows."""
    if FOLD:
        row = (tl.arange(0, T_R).to(tl.int64) + tile // across * T_R)[:, None]
        column = (tl.arange(0, T_C).to(tl.int64) + tile % across * T_C)[None, :]
        place = row * step + group * width + column
        marks = row * mask_a + group * mask_c + column * mask_b
    else:
        row = (tl.arange(0, T_R).to(tl.int64) + tile * T_R)[:, None]
        column = (tl.arange(0, T_C).to(tl.int64) + group * T_C)[None, :]
        place = row * step + column
        marks = row * mask_a + column // after * mask_c + column % after * mask_b
    inside = (row < height) & (column < width)
    value = raised(tl.load(x + place, mask=inside, other=0), PASS)
    if mask is not None:
        inside = inside & (tl.load(mask + marks, mask=inside, other=0) != 0)
    return value, inside, row


@jit
def _covered(
    tiles: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    across: tl.tensor,
    FOLD: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
) -> tl.tensor:
    """How many elements of a channel are in the first so many tiles."""
    if not FOLD:
        return tl.minimum(tiles * T_R, height)
    above = tiles // across * T_R
    beside = tl.minimum(tiles % across * T_C, width)
    return tl.minimum(above, height) * width + tl.maximum(tl.minimum(height - above, T_R), 0) * beside


@jit
def column_moments(
    x: tl.tensor,
    mask: tl.tensor,
    weights: tl.tensor,
    partials: tl.tensor,
    nonfinite: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    columns: tl.tensor,
    step: tl.tensor,
    after: tl.tensor,
    across: tl.tensor,
    tiles: tl.tensor,
    tiles_of_piece: tl.tensor,
    weight_step: tl.tensor,
    mask_a: tl.tensor,
    mask_c: tl.tensor,
    mask_b: tl.tensor,
    FOLD: tl.constexpr,
    OMIT: tl.constexpr,
    FINAL: tl.constexpr,
    PASS: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Partials (pieces, 7, columns) of a group: one channel (FOLD), or columns side by side."""
    group, piece = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    start = piece * tiles_of_piece
    stop = tl.minimum(start + tiles_of_piece, tiles)
    WIDE: tl.constexpr = 1 if FOLD else T_C
    column = (tl.arange(0, WIDE).to(tl.int64) + group * WIDE)[None, :]

    about_here = tl.zeros((1, WIDE), PASS)
    seen = (column >= columns).to(tl.int32)
    tile = start
    unseen = start < stop
    while unseen:
        value, real, _row = _elements(
            x, mask, tile, group, height, width, step, after, across, mask_a, mask_c, mask_b, FOLD, PASS, T_R, T_C
        )
        here, count = centre(value, real & (tl.abs(value) < INF), FOLD)
        about_here = tl.where((seen == 0) & (count > 0), here, about_here)
        seen = tl.maximum(seen, tl.minimum(count, 1))
        tile += 1
        unseen = (tile < stop) & (tl.min(tl.min(seen, 1), 0) == 0)
    shift = about_here.to(tl.float64)

    first = tl.zeros((T_R, T_C), tl.float64)
    second = tl.zeros((T_R, T_C), tl.float64)
    # Without mask and weights the count is known; registers decide how many programs are resident.
    KNOWN: tl.constexpr = mask is None and weights is None
    total = tl.zeros((1, 1) if KNOWN else (T_R, T_C), tl.float64 if weights is not None else tl.int32)
    bad = tl.zeros((T_R, T_C), tl.int32)
    low = tl.full((T_R, T_C), INF, PASS)
    high = tl.full((T_R, T_C), -INF, PASS)
    for tile in tl.range(start, stop, num_stages=STAGES):
        value, valid, row = _elements(
            x, mask, tile, group, height, width, step, after, across, mask_a, mask_c, mask_b, FOLD, PASS, T_R, T_C
        )
        real = valid & (tl.abs(value) < INF)
        bad += (valid & (real == 0)).to(tl.int32)
        low = tl.minimum(low, tl.where(real, value, INF))
        high = tl.maximum(high, tl.where(real, value, -INF))
        counted = real if OMIT else valid
        deviation = tl.where(real, value.to(tl.float64) - shift, 0.0)
        if weights is not None:
            weight = tl.load(weights + row * weight_step, mask=row < height, other=0.0)
            total += tl.where(counted, weight, 0.0)
            weighted = deviation * weight
        else:
            weighted = deviation
            if not KNOWN:
                total += counted.to(tl.int32)
        first += weighted
        second += weighted * deviation

    failed = summed(bad, FOLD).to(tl.float64)
    if KNOWN:
        known = _covered(stop, height, width, across, FOLD, T_R, T_C) - _covered(
            start, height, width, across, FOLD, T_R, T_C
        )
        n = known.to(tl.float64) - (failed if OMIT else 0.0)
    else:
        n = summed(total.to(tl.float64), FOLD)
    mean, rest, m2 = about(shift, n, summed(first, FOLD), summed(second, FOLD))
    smallest, largest = least(low, FOLD).to(tl.float64), most(high, FOLD).to(tl.float64)
    if FINAL and not OMIT:
        spoilt = tl.where(failed > 0, float("nan"), 0.0)
        mean, rest, m2 = mean + spoilt, rest + spoilt, m2 + spoilt
        smallest, largest = smallest + spoilt, largest + spoilt
    inside = column < columns
    place = partials + piece * 7 * columns + column
    tl.store(place, n, mask=inside)
    tl.store(place + columns, mean, mask=inside)
    tl.store(place + 2 * columns, rest, mask=inside)
    tl.store(place + 3 * columns, m2, mask=inside)
    tl.store(place + 4 * columns, tl.where(m2 != m2, m2, 0.0), mask=inside)
    tl.store(place + 5 * columns, smallest, mask=inside)
    tl.store(place + 6 * columns, largest, mask=inside)
    tl.store(nonfinite + piece * columns + column, failed, mask=inside)
