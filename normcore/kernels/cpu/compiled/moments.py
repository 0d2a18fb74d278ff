"""Moments of channels in one pass over x (A, C, B), block by block.

A block is at most some 4,096 values of each of its channels, shifted by the mean of eight of them. Sums are float64, of
few terms each, or compensated: squares of odd numbers are 1 modulo 8, so a plain sum of squares of few bits is not
rounded up as often as down, and was off by 7e-14 after 4,096 of them. A channel whose mean is elsewhere, or whose
sums are not finite, is looked at again while it is in the cache, by `careful`: in two passes, counting NaN and
infinities, which it leaves out if it is told to.
"""

from __future__ import annotations

from typing import Any

from normcore.kernels.base import M2, MEAN
from normcore.kernels.cpu.compiled.language import (
    BYTES,
    F64,
    FLAG,
    INT,
    INTS,
    X,
    at,
    begin,
    float64,
    follow,
    get,
    inlined,
    kernel,
    larger,
    put,
    smaller,
    whole,
)
from normcore.kernels.cpu.compiled.masked import careful, real_sums
from normcore.kernels.cpu.compiled.sums import (
    LONG_RUN,
    NEAR,
    NOT_FAR,
    ROWS,
    SAMPLES,
    TILE,
    column_sums,
    emit_sums,
    fold_columns,
    near_mean,
    run_sums,
    well_shifted,
)


@inlined
def runs_sums(x: Any, rows: int, stride: int, length: int, shift: float) -> Any:
    """`run_sums` of several runs, `stride` apart."""
    total, squares, low, high = run_sums(x, length, shift)
    for j in range(1, rows):
        more = run_sums(at(x, j * stride), length, shift)
        total += more[0]
        squares += more[1]
        low, high = smaller(more[2], low), larger(more[3], high)
    return total, squares, low, high


@inlined
def one_block(
    x: Any, rows: int, stride: int, channels: int, after: int, length: int, mask: Any, mask_row: int, mask_channel: int,
    mask_one: int, weights: Any, masked: bool, weighted: bool, omit: bool, work: Any, out: Any, out_stride: int,
) -> bool:  # fmt: skip
    """Moments of the channels of one block, into out (8, out_stride); whether all are known to be plain.

    Plain is what is finite, and of at least one value.
    """
    count = float64(rows * length)
    if masked or weighted:
        count = 0.0
        if mask_channel == 0 and mask_one <= 1:
            count = real_sums(
                x, rows, stride, channels, after, length, mask, mask_row, mask_one, weights, masked, weighted, work
            )
        if count == 0.0:
            careful(
                x, rows, stride, channels, after, length, mask, mask_row, mask_channel, mask_one, weights, masked,
                weighted, omit, work, out, out_stride,
            )  # fmt: skip
            return False
    elif after < LONG_RUN:
        column_sums(x, rows, stride, channels * after, after, work)
        fold_columns(work, channels, after)
    else:
        for c in range(channels):
            run = at(x, c * after)
            shift = near_mean(run, SAMPLES, length // SAMPLES)
            total, squares, low, high = runs_sums(run, rows, stride, length, shift)
            moved = total * (total / count)
            if not well_shifted(moved, squares - moved, NEAR):  # neighbours are alike, so what they say may not be it
                shift += total / count
                total, squares, low, high = runs_sums(run, rows, stride, length, shift)
            put(work, c, shift)
            put(work, TILE + c, total)
            put(work, 2 * TILE + c, squares)
            put(work, 3 * TILE + c, low)
            put(work, 4 * TILE + c, high)
            put(work, 5 * TILE + c, 0.0)
    limit = NOT_FAR if masked or weighted else NEAR
    if emit_sums(work, channels, count, limit, out, out_stride):
        return not masked
    for c in range(channels):
        m2, away = get(out, M2 * out_stride + c), get(out, MEAN * out_stride + c) - get(work, c)
        if not well_shifted(away * away * count, m2, limit):
            careful(
                at(x, c * after), rows, stride, 1, after, length, at(mask, c * mask_channel), mask_row, mask_channel,
                mask_one, weights, masked, weighted, omit, at(work, 6 * TILE), at(out, c), out_stride,
            )  # fmt: skip
    return False


@kernel(X, INTS, INTS, INT, BYTES, F64, F64, F64, returns=FLAG)
def block_moments(
    x: Any, plan: Any, turns: Any, total: int, mask: Any, weights: Any, work: Any, out: Any
) -> bool:  # fmt: skip
    """The blocks of x (A, C, B) into out (K, 8, C), in turns; whether all of this thread are known to be plain.

    Blocks are in memory's order: of A, of C within it, of B within that; K counts those of A and B. plan is A, C, B;
    rows of A, values of B, channels in a block; the mask's strides; whether there is one, whether there are weights,
    and whether to leave out what is not finite.
    """
    before, channels, after = whole(plan, 0), whole(plan, 1), whole(plan, 2)
    rows, span, tile = whole(plan, 3), whole(plan, 4), whole(plan, 5)
    mask_row, mask_channel, mask_one = whole(plan, 6), whole(plan, 7), whole(plan, 8)
    masked, weighted, omit = whole(plan, 9) != 0, whole(plan, 10) != 0, whole(plan, 11) != 0
    tiles, spans = (channels + tile - 1) // tile, (after + span - 1) // span
    plain = True
    block = begin(turns, total)
    while block < total:
        row, place = (block // (tiles * spans)) * rows, (block % spans) * span
        channel = ((block // spans) % tiles) * tile
        plain &= one_block(
            at(x, (row * channels + channel) * after + place), min(rows, before - row), channels * after,
            min(tile, channels - channel), after, min(span, after - place),
            at(mask, row * mask_row + channel * mask_channel + place * mask_one), mask_row, mask_channel, mask_one,
            at(weights, row if weighted else 0), masked, weighted, omit, work,
            at(out, ((block // (tiles * spans)) * spans + block % spans) * ROWS * channels + channel), channels,
        )  # fmt: skip
        block = follow(turns, block, total)
    return plain
