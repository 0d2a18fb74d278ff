"""Sums over what a block holds: of runs of one channel, of columns side by side, and what is made of them."""

from __future__ import annotations

from typing import Any

from normcore.kernels.base import COUNT, M2, M2_LOW, MAX, MEAN, MEAN_LOW, MIN
from normcore.kernels.cpu.compiled.lanes import (
    LANES,
    as_values,
    fused,
    get_lanes,
    larger_lanes,
    largest_of,
    load_lanes,
    put_lanes,
    smaller_lanes,
    smallest_of,
    spread_lanes,
    sum_of,
    two_sum_lanes,
)
from normcore.kernels.cpu.compiled.language import (
    added,
    at,
    fetch,
    float64,
    get,
    inlined,
    item_bytes,
    larger,
    load,
    plus,
    put,
    smaller,
    times,
)
from normcore.kernels.cpu.compiled.twofold import add, two_prod, two_sum

# Rows of what is written of each block: packed moments, and how many values are not finite.
ROWS = 8
NONFINITE = 7

# Values of a channel in a block; columns side by side, whose sums fit the first-level cache; rows read at a time.
BLOCK, TILE, AT_ONCE = 4096, 1024, 24
# Lines that memory is asked for ahead of what is summed up: left to itself, the processor waits for a third of them.
AHEAD = 128
# Values whose mean a block is shifted by. How far the block's own mean may be from it: count * distance^2 is at most so
# many times m2, so that subtracting it costs no more than that many eps; the second where the first value is the shift.
SAMPLES, NEAR, NOT_FAR = 8, 2.0, 16.0
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
def well_shifted(moved: float, m2: float, limit: float) -> bool:
    """Whether m2 is finite, and what was subtracted for the shift's distance from the mean is below limit * m2."""
    return (m2 - m2 == 0.0) & (moved <= limit * m2)


@inlined
def near_mean(x: Any, samples: int, step: int) -> Any:
    """The mean of some values, as the first one and the mean distance from it: of equal ones it is exactly that."""
    first, moved = float64(load(x, 0)), 0.0
    for i in range(1, samples):
        moved += load(x, i * step) - first
    return first + moved / samples


@inlined
def emit_sums(work: Any, channels: int, count: float, limit: float, out: Any, stride: int) -> bool:
    """Write the channels of a block from work (6, TILE): see `column_sums`. Whether all are well shifted."""
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
        wrong += 0 if well_shifted(total * part, m2, limit) else 1
    return wrong == 0


@inlined
def fetch_ahead(x: Any, i: int, count: int) -> None:
    """Have what lies behind the next `count` values, at some distance, on its way to the cache."""
    line = 64 // item_bytes(x)
    for place in range(i, i + count, line):
        fetch(x, AHEAD * line + place)


@inlined
def run_sums(x: Any, length: int, shift: float) -> Any:
    """Sum, sum of squares, smallest and largest of a run about a shift."""
    end = length - length % (2 * LANES)
    value = load(x, 0)
    total, squares, low, high = 0.0, 0.0, value, value
    if end > 0:
        totals, more_totals = spread_lanes(0.0), spread_lanes(0.0)
        squared, more_squared = spread_lanes(0.0), spread_lanes(0.0)
        lows = highs = more_lows = more_highs = load_lanes(x, 0)
        for i in range(0, end, 2 * LANES):
            fetch_ahead(x, i, 2 * LANES)
            values, more = load_lanes(x, i), load_lanes(x, i + LANES)
            lows, highs = smaller_lanes(values, lows), larger_lanes(values, highs)
            more_lows, more_highs = smaller_lanes(more, more_lows), larger_lanes(more, more_highs)
            deviations, more_deviations = values - shift, more - shift
            totals, more_totals = totals + deviations, more_totals + more_deviations
            squared = fused(deviations, deviations, squared)
            more_squared = fused(more_deviations, more_deviations, more_squared)
        total, squares = sum_of(totals + more_totals), sum_of(squared + more_squared)
        low, high = smallest_of(smaller_lanes(lows, more_lows)), largest_of(larger_lanes(highs, more_highs))
    for i in range(end, length):
        value = load(x, i)
        deviation = float64(value) - shift
        total = total + deviation
        squares = plus(squares, times(deviation, deviation))
        low, high = smaller(value, low), larger(value, high)
    return total, squares, float64(low), float64(high)


@inlined
def start_columns(x: Any, columns: int, group: int, samples: int, step: int, work: Any) -> None:
    """Sums of no row yet, about the mean of some values, `step` apart, of each group's first column."""
    if group > 1:
        for column in range(0, columns, group):
            shift = near_mean(at(x, column), samples, step)
            for i in range(column, column + group):
                put(work, i, shift)
    else:
        for i in range(columns):
            put(work, i, load(x, i))
            put(work, TILE + i, 0.0)
        for row in range(1, samples):
            here = at(x, row * step)
            for i in range(columns):
                put(work, TILE + i, get(work, TILE + i) + (load(here, i) - get(work, i)))
        for i in range(columns if samples > 1 else 0):
            put(work, i, get(work, i) + get(work, TILE + i) / samples)
    for i in range(columns):
        value = float64(load(x, i))
        put(work, TILE + i, 0.0)
        put(work, 2 * TILE + i, 0.0)
        put(work, 3 * TILE + i, value)
        put(work, 4 * TILE + i, value)
        put(work, 5 * TILE + i, 0.0)


@inlined
def some_rows(x: Any, rows: int, stride: int, columns: int, work: Any, lows: Any, highs: Any) -> None:
    """Add a few rows of columns to their sums; have those that come after them on their way."""
    even = columns - columns % LANES
    next_row, next_column = max(AT_ONCE, 64 * AHEAD // (columns * item_bytes(x))) * stride, 0
    for i in range(0, even, LANES):
        shifts, totals, squares = get_lanes(work, i), spread_lanes(0.0), spread_lanes(0.0)
        least, most = get_lanes(lows, i), get_lanes(highs, i)
        for j in range(rows):
            for line in range(0, LANES * item_bytes(x), 64):
                fetch(x, next_row + next_column + line // item_bytes(x))
            next_column += LANES
            if next_column >= even:  # along rows, as memory likes it
                next_row, next_column = next_row + stride, 0
            values = load_lanes(x, j * stride + i)
            least, most = smaller_lanes(values, least), larger_lanes(values, most)
            deviations = values - shifts
            totals = totals + deviations
            squares = fused(deviations, deviations, squares)
        put_lanes(lows, i, least)
        put_lanes(highs, i, most)
        put_lanes(work, TILE + i, get_lanes(work, TILE + i) + totals)
        squares, rest = two_sum_lanes(get_lanes(work, 2 * TILE + i), squares)
        put_lanes(work, 2 * TILE + i, squares)
        put_lanes(work, 5 * TILE + i, get_lanes(work, 5 * TILE + i) + rest)
    for i in range(even, columns):
        shift, total, square = get(work, i), 0.0, 0.0
        low, high = get(lows, i), get(highs, i)
        for j in range(rows):
            value = load(x, j * stride + i)
            low, high = smaller(value, low), larger(value, high)
            deviation = value - shift
            total += deviation
            square = plus(square, times(deviation, deviation))
        put(lows, i, low)
        put(highs, i, high)
        put(work, TILE + i, get(work, TILE + i) + total)
        square, remainder = two_sum(get(work, 2 * TILE + i), square)
        put(work, 2 * TILE + i, square)
        put(work, 5 * TILE + i, get(work, 5 * TILE + i) + remainder)


@inlined
def column_sums(x: Any, rows: int, stride: int, columns: int, group: int, work: Any) -> None:
    """The same of columns side by side, into work (6, TILE): shift, sum, squares, smallest, largest, rest of squares.

    Groups of columns, which are values of one channel, have one shift.
    """
    if rows >= 2 * SAMPLES:
        start_columns(x, columns, group, SAMPLES, (rows // SAMPLES) * stride, work)
    else:
        start_columns(x, columns, group, rows, stride, work)
    lows, highs = as_values(at(work, 6 * TILE), x), as_values(at(work, 7 * TILE), x)
    for i in range(columns):
        put(lows, i, load(x, i))
        put(highs, i, load(x, i))
    row = 0
    while row + AT_ONCE <= rows:
        some_rows(at(x, row * stride), AT_ONCE, stride, columns, work, lows, highs)
        row += AT_ONCE
    if row < rows:
        some_rows(at(x, row * stride), rows - row, stride, columns, work, lows, highs)
    for i in range(columns):
        put(work, 3 * TILE + i, get(lows, i))
        put(work, 4 * TILE + i, get(highs, i))


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
