"""Moments of channels in one pass over x (A, C, B), block by block.

A block is at most some 4,096 values of each of its channels, shifted by the channel's first one. Sums are float64, of
few terms each, or compensated: squares of odd numbers are 1 modulo 8, so a plain sum of squares of few bits is not
rounded up as often as down, and was off by 7e-14 after 4,096 of them. A channel whose first value is an outlier, or
whose sums are not finite, is looked at again while it is in the cache, by `careful`: in two passes, counting NaN and
infinities, which it leaves out if it is told to.
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.base import COUNT, M2, M2_LOW, MAX, MEAN, MEAN_LOW, MIN
from normcore.kernels.cpu.compiled.language import (
    BYTES,
    F64,
    FLAG,
    INT,
    INTS,
    X,
    added,
    at,
    fetch,
    float64,
    get,
    inlined,
    kernel,
    larger,
    load,
    plus,
    put,
    smaller,
    times,
    whole,
)
from normcore.kernels.cpu.compiled.twofold import add, two_prod, two_sum

# Rows of what is written of each block: packed moments, and how many values are not finite.
ROWS = 8
NONFINITE = 7

# Values of a channel in a block; columns side by side, whose sums fit the first-level cache; rows read at a time.
BLOCK, TILE, AT_ONCE = 4096, 1024, 8
# Runs of a channel's values from this length on are summed up one by one, shorter ones as columns.
LONG_RUN = 256
WORK = 10 * TILE


@inlined
def emit(out: Any, stride: int, count: float, mean: float, mean_low: float, m2: float, low: float, high: float) -> None:
    """Write one channel of a block."""
    put(out, COUNT * stride, count)
    put(out, MEAN * stride, mean)
    put(out, MEAN_LOW * stride, mean_low)
    put(out, M2 * stride, m2)
    put(out, M2_LOW * stride, 0.0)
    put(out, MIN * stride, low)
    put(out, MAX * stride, high)
    put(out, NONFINITE * stride, 0.0)


@inlined
def well_shifted(moved: float, m2: float) -> bool:
    """Whether m2 is finite, and what was subtracted for the shift's distance from the mean has not cost it digits."""
    return (m2 - m2 == 0.0) & (moved <= 16.0 * m2)


@inlined
def emit_sums(work: Any, channels: int, count: float, out: Any, stride: int) -> bool:
    """Write the channels of a block from work (6, TILE): see `column_sums`. Whether all are finite."""
    wrong = 0
    for c in range(channels):
        shift, total = get(work, c), get(work, TILE + c)
        part = total / count
        m2 = (get(work, 2 * TILE + c) - total * part) + get(work, 5 * TILE + c)
        # The mean to two words: that of the sum, which is mostly exact, and not only of its quotient.
        product, error = two_prod(part, count)
        mean, mean_low = add(shift, 0.0, part, ((total - product) - error) / count)
        put(out, COUNT * stride + c, count)
        put(out, MEAN * stride + c, mean)
        put(out, MEAN_LOW * stride + c, mean_low)
        put(out, M2 * stride + c, 0.0 if m2 < 0.0 else m2)
        put(out, M2_LOW * stride + c, 0.0)
        put(out, MIN * stride + c, get(work, 3 * TILE + c))
        put(out, MAX * stride + c, get(work, 4 * TILE + c))
        put(out, NONFINITE * stride + c, 0.0)
        wrong += 0 if well_shifted(total * part, m2) else 1
    return wrong == 0


@inlined
def run_sums(x: Any, length: int, shift: float) -> Any:
    """Sum, sum of squares, smallest and largest of a run about a shift."""
    total, squares, low, high = 0.0, 0.0, load(x, 0), load(x, 0)
    for i in range(length):
        value = load(x, i)
        deviation = float64(value) - shift
        total = added(total, deviation)
        squares = added(squares, times(deviation, deviation))
        low, high = smaller(value, low), larger(value, high)
    return total, squares, float64(low), float64(high)


@inlined
def column_sums(x: Any, rows: int, stride: int, columns: int, group: int, work: Any) -> None:
    """The same of columns side by side, into work (6, TILE): shift, sum, squares and their rest, smallest, largest.

    Groups of columns, which are values of one channel, have one shift.
    """
    for column in range(0, columns, group):
        shift = float64(load(x, column))
        for i in range(column, column + group):
            put(work, i, shift)
    for i in range(columns):
        value = float64(load(x, i))
        put(work, TILE + i, 0.0)
        put(work, 2 * TILE + i, 0.0)
        put(work, 3 * TILE + i, value)
        put(work, 4 * TILE + i, value)
        put(work, 5 * TILE + i, 0.0)
    row = 0
    while row + AT_ONCE <= rows:
        here = at(x, row * stride)
        if row + 2 * AT_ONCE <= rows:
            for ahead in range(AT_ONCE, 2 * AT_ONCE):
                for i in range(0, columns, 16):
                    fetch(here, ahead * stride + i)
        for i in range(columns):
            shift, total, squares = get(work, i), 0.0, 0.0
            low, high = get(work, 3 * TILE + i), get(work, 4 * TILE + i)
            for j in range(AT_ONCE):
                value = float64(load(here, j * stride + i))
                deviation = value - shift
                total += deviation
                squares = plus(squares, times(deviation, deviation))
                low, high = smaller(value, low), larger(value, high)
            put(work, TILE + i, get(work, TILE + i) + total)
            squares, rest = two_sum(get(work, 2 * TILE + i), squares)
            put(work, 2 * TILE + i, squares)
            put(work, 5 * TILE + i, get(work, 5 * TILE + i) + rest)
            put(work, 3 * TILE + i, low)
            put(work, 4 * TILE + i, high)
        row += AT_ONCE
    while row < rows:
        here = at(x, row * stride)
        for i in range(columns):
            value = float64(load(here, i))
            deviation = value - get(work, i)
            put(work, TILE + i, get(work, TILE + i) + deviation)
            put(work, 2 * TILE + i, plus(get(work, 2 * TILE + i), times(deviation, deviation)))
            put(work, 3 * TILE + i, smaller(value, get(work, 3 * TILE + i)))
            put(work, 4 * TILE + i, larger(value, get(work, 4 * TILE + i)))
        row += 1


@inlined
def fold_columns(work: Any, channels: int, group: int) -> None:
    """Add up the columns of each channel, to the front of work (6, TILE)."""
    if group == 1:
        return
    for c in range(channels):
        i = c * group
        total, squares, low, high = 0.0, 0.0, get(work, 3 * TILE + i), get(work, 4 * TILE + i)
        for j in range(i, i + group):
            total = added(total, get(work, TILE + j))
            squares = added(squares, get(work, 2 * TILE + j) + get(work, 5 * TILE + j))
            low, high = smaller(get(work, 3 * TILE + j), low), larger(get(work, 4 * TILE + j), high)
        put(work, c, get(work, i))
        put(work, TILE + c, total)
        put(work, 2 * TILE + c, squares)
        put(work, 3 * TILE + c, low)
        put(work, 4 * TILE + c, high)
        put(work, 5 * TILE + c, 0.0)


@inlined
def careful(
    x: Any, rows: int, row_stride: int, channels: int, stride: int, length: int, mask: Any, mask_row: int,
    mask_channel: int, mask_one: int, weights: Any, masked: bool, weighted: bool, omit: bool, work: Any, out: Any,
    out_stride: int,
) -> None:  # fmt: skip
    """Moments of channels of (rows, channels, length): whatever is masked, weighted or not finite; two passes.

    work is (channels, 10): weight, seen, shift, sum, smallest, largest, not finite; then off, squares and their rest.
    """
    for c in range(channels):
        for i in range(10):
            put(work, 10 * c + i, 0.0)
        put(work, 10 * c + 4, math.inf)
        put(work, 10 * c + 5, -math.inf)
    for again in range(2):
        for row in range(rows):
            weight = get(weights, row) if weighted else 1.0
            for c in range(channels):
                own, run = at(work, 10 * c), at(x, row * row_stride + c * stride)
                real = at(mask, row * mask_row + c * mask_channel)
                seen, shift = get(own, 1), get(own, 2)
                total, low, high, bad = get(own, 3), get(own, 4), get(own, 5), get(own, 6)
                off, squares, rest = get(own, 7), get(own, 8), get(own, 9)
                for i in range(length):
                    if masked and get(real, i * mask_one) == 0:
                        continue
                    value = float64(load(run, i))
                    finite = value - value == 0.0
                    if again:
                        if finite:
                            deviation = (value - shift) - total
                            off += weight * deviation
                            squares, more = two_sum(squares, weight * (deviation * deviation))
                            rest += more
                        continue
                    if not finite:
                        bad += 1.0
                        if omit:
                            continue
                    elif seen == 0.0:
                        shift, seen = value, 1.0
                    put(own, 0, get(own, 0) + weight)
                    if finite:
                        total += weight * (value - shift)
                        low, high = min(low, value), max(high, value)
                put(own, 1, seen)
                put(own, 2, shift)
                put(own, 3, total)
                put(own, 4, low)
                put(own, 5, high)
                put(own, 6, bad)
                put(own, 7, off)
                put(own, 8, squares)
                put(own, 9, rest)
        if not again:
            for c in range(channels):  # the mean's distance from the shift
                own = at(work, 10 * c)
                put(own, 3, get(own, 3) / (get(own, 0) if get(own, 0) > 0.0 else 1.0))
    for c in range(channels):
        own, target = at(work, 10 * c), at(out, c)
        count, bad = get(own, 0), get(own, 6)
        if bad > 0.0 and not omit:
            emit(target, out_stride, count, math.nan, math.nan, math.nan, math.nan, math.nan)
            put(target, M2_LOW * out_stride, math.nan)
        elif count > 0.0:
            shift, moved, rest = get(own, 2), get(own, 3), get(own, 7) / count
            m2 = (get(own, 8) - get(own, 7) * rest) + get(own, 9)
            # The mean is shift + moved + rest, in two words.
            mean = shift + moved
            part = mean - shift
            low_word = (shift - (mean - part)) + (moved - part) + rest
            high_word = mean + low_word
            emit(
                target,
                out_stride,
                count,
                high_word,
                low_word - (high_word - mean),
                max(m2, 0.0) if m2 == m2 else math.inf,
                get(own, 4),
                get(own, 5),
            )
        else:
            emit(target, out_stride, 0.0, 0.0, 0.0, 0.0, math.inf, -math.inf)
        put(target, NONFINITE * out_stride, bad)


@inlined
def one_block(
    x: Any, rows: int, stride: int, channels: int, after: int, length: int, mask: Any, mask_row: int, mask_channel: int,
    mask_one: int, weights: Any, masked: bool, weighted: bool, omit: bool, work: Any, out: Any, out_stride: int,
) -> bool:  # fmt: skip
    """Moments of the channels of one block, into out (8, out_stride); whether all are known to be plain.

    Plain is what is finite, and of at least one value.
    """
    if masked or weighted:
        careful(
            x, rows, stride, channels, after, length, mask, mask_row, mask_channel, mask_one, weights, masked, weighted,
            omit, work, out, out_stride,
        )  # fmt: skip
        return False
    if after < LONG_RUN:
        column_sums(x, rows, stride, channels * after, after, work)
        fold_columns(work, channels, after)
    else:
        for c in range(channels):
            run = at(x, c * after)
            shift = float64(load(run, 0))
            total, squares, low, high = run_sums(run, length, shift)
            for j in range(1, rows):
                more = run_sums(at(run, j * stride), length, shift)
                total += more[0]
                squares += more[1]
                low, high = smaller(more[2], low), larger(more[3], high)
            put(work, c, shift)
            put(work, TILE + c, total)
            put(work, 2 * TILE + c, squares)
            put(work, 3 * TILE + c, low)
            put(work, 4 * TILE + c, high)
            put(work, 5 * TILE + c, 0.0)
    if emit_sums(work, channels, float64(rows * length), out, out_stride):
        return True
    for c in range(channels):
        m2, away = get(out, M2 * out_stride + c), get(out, MEAN * out_stride + c) - get(work, c)
        if not well_shifted(away * away * float64(rows * length), m2):
            careful(
                at(x, c * after), rows, stride, 1, after, length, mask, 0, 0, 0, weights, False, False, omit,
                at(work, 6 * TILE), at(out, c), out_stride,
            )  # fmt: skip
    return False


@kernel(X, INTS, INT, INT, BYTES, F64, F64, F64, returns=FLAG)
def block_moments(
    x: Any, plan: Any, first: int, last: int, mask: Any, weights: Any, work: Any, out: Any
) -> bool:  # fmt: skip
    """Blocks `first` to `last` of x (A, C, B) into out (K, 8, C); whether all are known to be plain.

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
    for block in range(first, last):
        row, place = (block // (tiles * spans)) * rows, (block % spans) * span
        channel = ((block // spans) % tiles) * tile
        plain &= one_block(
            at(x, (row * channels + channel) * after + place), min(rows, before - row), channels * after,
            min(tile, channels - channel), after, min(span, after - place),
            at(mask, row * mask_row + channel * mask_channel + place * mask_one), mask_row, mask_channel, mask_one,
            at(weights, row if weighted else 0), masked, weighted, omit, work,
            at(out, ((block // (tiles * spans)) * spans + block % spans) * ROWS * channels + channel), channels,
        )  # fmt: skip
    return plain
