"""Moments of blocks of which some values count for nothing, or more than others.

Mostly a mask is the same for all channels: rows that are padding, or ends of sequences. Then sums go as fast as those
of a full block. What is left, and what those find not finite or badly shifted, takes `careful`, value by value, twice.
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.base import M2_LOW
from normcore.kernels.cpu.compiled.language import (
    added,
    at,
    flag,
    float64,
    get,
    inlined,
    larger,
    load,
    put,
    smaller,
    times,
)
from normcore.kernels.cpu.compiled.sums import LONG_RUN, NONFINITE, TILE, emit, fold_columns, run_sums, start_columns
from normcore.kernels.cpu.compiled.twofold import two_sum


@inlined
def weighted_columns(
    x: Any, rows: int, stride: int, columns: int, group: int, mask: Any, mask_row: int, weights: Any, masked: bool,
    weighted: bool, work: Any,
) -> float:  # fmt: skip
    """Sums of columns as in `column_sums`, of the rows that are real, times their weights; the weight of a column."""
    count = 0.0
    for row in range(rows):
        if masked and get(mask, row * mask_row) == 0:
            continue
        here, weight = at(x, row * stride), get(weights, row) if weighted else 1.0
        if count == 0.0:
            start_columns(here, columns, group, 1, 0, work)
        count += weight
        for i in range(columns):
            value = float64(load(here, i))
            deviation = value - get(work, i)
            moved = weight * deviation
            squares, rest = two_sum(get(work, 2 * TILE + i), moved * deviation)
            put(work, TILE + i, get(work, TILE + i) + moved)
            put(work, 2 * TILE + i, squares)
            put(work, 5 * TILE + i, get(work, 5 * TILE + i) + rest)
            put(work, 3 * TILE + i, smaller(value, get(work, 3 * TILE + i)))
            put(work, 4 * TILE + i, larger(value, get(work, 4 * TILE + i)))
    return count


@inlined
def masked_run_sums(x: Any, length: int, shift: float, mask: Any) -> Any:
    """How many of a run are real, and their sum, sum of squares, smallest and largest about a shift."""
    count, total, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for i in range(length):
        value, real = float64(load(x, i)), flag(mask, i)
        deviation = value - shift if real else 0.0
        count += 1 if real else 0
        total = added(total, deviation)
        squares = added(squares, times(deviation, deviation))
        low, high = smaller(value if real else math.inf, low), larger(value if real else -math.inf, high)
    return float64(count), total, squares, low, high


@inlined
def weighted_runs(
    x: Any, rows: int, stride: int, channels: int, after: int, length: int, mask: Any, mask_row: int, mask_one: int,
    weights: Any, masked: bool, weighted: bool, work: Any,
) -> float:  # fmt: skip
    """Sums of each channel's runs into work (6, TILE), of what is real, times the rows' weights; a channel's weight."""
    first, place = -1, 0
    for row in range(rows):  # the first value that is real is the shift
        for i in range(length if masked and mask_one != 0 else 1):
            if first < 0 and (not masked or flag(mask, row * mask_row + i * mask_one)):
                first, place = row, i
    if first < 0:
        return 0.0
    count = 0.0
    for c in range(channels):
        shift = float64(load(x, first * stride + c * after + place))
        count, total, squares, low, high = 0.0, 0.0, 0.0, math.inf, -math.inf
        for row in range(first, rows):
            run, real = at(x, row * stride + c * after), at(mask, row * mask_row)
            weight = get(weights, row) if weighted else 1.0
            if masked and mask_one != 0:
                seen, more, more_squares, lowest, highest = masked_run_sums(run, length, shift, real)
            elif masked and not flag(real, 0):
                continue
            else:
                seen = float64(length)
                more, more_squares, lowest, highest = run_sums(run, length, shift)
            count += weight * seen
            total += weight * more
            squares += weight * more_squares
            low, high = smaller(lowest, low), larger(highest, high)
        put(work, c, shift)
        put(work, TILE + c, total)
        put(work, 2 * TILE + c, squares)
        put(work, 3 * TILE + c, low)
        put(work, 4 * TILE + c, high)
        put(work, 5 * TILE + c, 0.0)
    return count


@inlined
def real_sums(
    x: Any, rows: int, stride: int, channels: int, after: int, length: int, mask: Any, mask_row: int, mask_one: int,
    weights: Any, masked: bool, weighted: bool, work: Any,
) -> Any:  # fmt: skip
    """Sums of channels into work (6, TILE), the mask being the same for all of them; the weight of each."""
    if after < LONG_RUN and (not masked or mask_one == 0 or after == 1):
        count = weighted_columns(
            x, rows, stride, channels * after, after, mask, mask_row, weights, masked, weighted, work
        )
        if count > 0.0:
            fold_columns(work, channels, after)
        return count * after
    return weighted_runs(
        x, rows, stride, channels, after, length, mask, mask_row, mask_one, weights, masked, weighted, work
    )


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
