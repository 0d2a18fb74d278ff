"""Partial moments merged in a fixed order, without atomics: the same bits in each run."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore.kernels.base import ChannelMoments
from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.elements import INF, about, jit, least, most, summed, two_sum


def merged(partials: Tensor, nonfinite: Tensor, channels: int, per_channel: int, *, omit: bool) -> ChannelMoments:
    """The moments of all pieces (P, 7, C * per_channel) of each channel, and its count of what is not finite."""
    values = torch.empty(7, channels, dtype=torch.float64, device=partials.device)
    bad = torch.empty(channels, dtype=torch.float64, device=partials.device)
    tile = tuning.merge_tile(len(partials) * per_channel, channels)
    merge_moments[(tuning.ceil_div(channels, tile.columns),)](
        partials,
        nonfinite,
        values,
        bad,
        len(partials) * per_channel,
        channels,
        per_channel,
        OMIT=omit,
        T_R=tile.rows,
        T_C=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return ChannelMoments(values, bad)


@jit
def merge_moments(
    partials: tl.tensor,
    nonfinite: tl.tensor,
    values: tl.tensor,
    bad: tl.tensor,
    entries: tl.tensor,
    channels: tl.tensor,
    per_channel: tl.tensor,
    OMIT: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
) -> None:
    """All entries of each channel, about the mean of the heaviest: see `normcore.algebra.reduce`.

    Sums are float64: as the heaviest of E entries has at least an E-th of the weight, they cancel at most a factor of
    E, and the means differ by little more than what is drawn from one distribution does.
    """
    channel = (tl.arange(0, T_C).to(tl.int64) + tl.program_id(0).to(tl.int64) * T_C)[None, :]
    lane = tl.arange(0, T_R)[:, None]
    columns = channels * per_channel

    weight = tl.full((T_R, T_C), -1.0, tl.float64)
    mean = tl.zeros((T_R, T_C), tl.float64)
    rest = tl.zeros((T_R, T_C), tl.float64)
    for start in range(0, entries, T_R):
        entry = (lane + start).to(tl.int64)
        inside = (entry < entries) & (channel < channels)
        place = partials + entry // per_channel * 7 * columns + channel * per_channel + entry % per_channel
        n = tl.load(place, mask=inside, other=-1.0)
        heavier = n > weight
        weight = tl.where(heavier, n, weight)
        mean = tl.where(heavier, tl.load(place + columns, mask=inside, other=0.0), mean)
        rest = tl.where(heavier, tl.load(place + 2 * columns, mask=inside, other=0.0), rest)
    heaviest = weight == most(weight, False)
    chosen = lane == least(tl.where(heaviest, lane, T_R), False)
    mean = summed(tl.where(chosen, mean, 0.0), False)
    rest = summed(tl.where(chosen, rest, 0.0), False)

    total = tl.zeros((T_R, T_C), tl.float64)
    first = tl.zeros((T_R, T_C), tl.float64)
    second = tl.zeros((T_R, T_C), tl.float64)
    m2 = tl.zeros((T_R, T_C), tl.float64)
    failed = tl.zeros((T_R, T_C), tl.float64)
    low = tl.full((T_R, T_C), INF, tl.float64)
    high = tl.full((T_R, T_C), -INF, tl.float64)
    for start in range(0, entries, T_R):
        entry = (lane + start).to(tl.int64)
        inside = (entry < entries) & (channel < channels)
        place = partials + entry // per_channel * 7 * columns + channel * per_channel + entry % per_channel
        n = tl.load(place, mask=inside, other=0.0)
        delta = tl.load(place + columns, mask=inside, other=0.0) - mean
        delta += tl.load(place + 2 * columns, mask=inside, other=0.0) - rest
        delta = tl.where(n > 0, delta, 0.0)
        total += n
        first += n * delta
        second += n * delta * delta
        m2 += tl.load(place + 3 * columns, mask=inside, other=0.0)
        low = tl.minimum(low, tl.load(place + 5 * columns, mask=inside, other=INF))
        high = tl.maximum(high, tl.load(place + 6 * columns, mask=inside, other=-INF))
        bads = nonfinite + entry // per_channel * columns + channel * per_channel + entry % per_channel
        failed += tl.load(bads, mask=inside, other=0.0)

    n = summed(total, False)
    off, _rest, spread = about(tl.zeros_like(n), n, summed(first, False), summed(second, False))
    mean, rest = two_sum(mean, off + rest)
    m2, m2_rest = two_sum(summed(m2, False), spread)
    count = summed(failed, False)
    smallest, largest = least(low, False), most(high, False)
    if not OMIT:
        spoilt = tl.where(count > 0, float("nan"), 0.0)
        mean, rest, m2, m2_rest = mean + spoilt, rest + spoilt, m2 + spoilt, m2_rest + spoilt
        smallest, largest = smallest + spoilt, largest + spoilt
    inside = channel < channels
    place = values + channel
    tl.store(place, n, mask=inside)
    tl.store(place + channels, mean, mask=inside)
    tl.store(place + 2 * channels, rest, mask=inside)
    tl.store(place + 3 * channels, m2, mask=inside)
    tl.store(place + 4 * channels, m2_rest, mask=inside)
    tl.store(place + 5 * channels, smallest, mask=inside)
    tl.store(place + 6 * channels, largest, mask=inside)
    tl.store(bad + channel, count, mask=inside)
