"""Channels of x (A, C, B) by their coefficients, block by block.

What float32 holds is computed as (x - offset) * (factor / divisor) + shift in float64 and rounded once; what needs more
as ((x - offset) - offset_low) / divisor * factor + shift.
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.cpu.compiled.lanes import (
    LANES,
    before_line,
    clipped_lanes,
    fused,
    load_lanes,
    look_lanes,
    store_lanes,
    stream_lanes,
)
from normcore.kernels.cpu.compiled.language import (
    BYTES,
    F64,
    INT,
    INTS,
    REAL,
    X,
    Y,
    address,
    at,
    begin,
    copied,
    flag,
    follow,
    inlined,
    is_wide,
    item_bytes,
    kernel,
    load,
    look,
    note,
    plus,
    store,
    stream,
    streamed,
    times,
    whole,
)
from normcore.kernels.cpu.compiled.sums import LONG_RUN, TILE, fetch_ahead

# Values that go through the first-level cache on their way past the others.
AT_ONCE = 2048
TABLE = 12 * TILE


@inlined
def flush(target: Any, source: Any, length: int) -> None:
    """Copy a run past the caches."""
    size = item_bytes(target)
    line = 64 // size
    head = min(length, ((64 - address(target) % 64) % 64) // size)
    for i in range(head):
        copied(target, source, i)
    i = head
    while i + line <= length:
        stream(at(target, i), at(source, i))
        i += line
    while i < length:
        copied(target, source, i)
        i += 1


@inlined
def tabulate(
    table: Any, c: int, wide: bool, offset: float, rest: float, divisor: float, factor: float, shift: float
) -> None:  # fmt: skip
    """Coefficients of a channel into the second half of a table (2, 6, TILE); the last is factor / divisor."""
    divisor = 1.0 if divisor == 0.0 else divisor
    note(table, 6 * TILE + c, offset)
    note(table, 10 * TILE + c, shift)
    if wide:
        note(table, 7 * TILE + c, rest)
        note(table, 8 * TILE + c, divisor)
        note(table, 9 * TILE + c, factor)
    else:
        note(table, 11 * TILE + c, factor / divisor)


@inlined
def spread(table: Any, channels: int, group: int) -> Any:
    """The coefficients (6, TILE) of columns, `group` of each channel, in the first half where that is above 1."""
    if group == 1:
        return at(table, 6 * TILE)
    for row in range(0, 6 * TILE, TILE):
        for c in range(channels):
            value = look(table, 6 * TILE + row + c)
            for i in range(c * group, c * group + group):
                note(table, row + i, value)
    return table


@inlined
def clipped(value: float, low: float, high: float) -> Any:
    """The value within low and high; NaN stays."""
    value = low if value < low else value
    return high if value > high else value


@inlined
def apply_column(x: Any, y: Any, i: int, own: Any, low: float, high: float) -> None:
    """One value by its column's coefficients."""
    if is_wide(x):
        value = ((load(x, i) - look(own, 0)) - look(own, TILE)) / look(own, 2 * TILE)
        value = value * look(own, 3 * TILE) + look(own, 4 * TILE)
    else:
        value = plus(times(load(x, i) - look(own, 0), look(own, 5 * TILE)), look(own, 4 * TILE))
    store(y, i, clipped(value, low, high))


@inlined
def apply_lanes(
    values: Any, wide: bool, offset: Any, rest: Any, divisor: Any, factor: Any, shift: Any, scale: Any, low: float,
    high: float, bounded: bool,
) -> Any:  # fmt: skip
    """The same, of sixteen."""
    values = ((values - offset) - rest) / divisor * factor + shift if wide else fused(values - offset, scale, shift)
    return clipped_lanes(values, low, high) if bounded else values


@inlined
def apply_columns(
    x: Any, y: Any, rows: int, stride: int, columns: int, own: Any, low: float, high: float, streaming: bool
) -> None:  # fmt: skip
    """Rows of columns, each by its own coefficients, `stride` apart; past the caches if streaming."""
    even, bounded = columns - columns % LANES, low > -math.inf or high < math.inf
    for row in range(rows):
        source, target = at(x, row * stride), at(y, row * stride)
        for i in range(0, even, LANES):
            if streaming:
                fetch_ahead(source, i, LANES)
            values = apply_lanes(
                load_lanes(source, i), is_wide(x), look_lanes(own, i), look_lanes(own, TILE + i),
                look_lanes(own, 2 * TILE + i), look_lanes(own, 3 * TILE + i), look_lanes(own, 4 * TILE + i),
                look_lanes(own, 5 * TILE + i), low, high, bounded,
            )  # fmt: skip
            if streaming:
                stream_lanes(target, i, values)
            else:
                store_lanes(target, i, values)
        for i in range(even, columns):
            apply_column(source, target, i, at(own, i), low, high)


@inlined
def apply_run(x: Any, y: Any, length: int, own: Any, low: float, high: float, streaming: bool) -> None:
    """A run of one channel; past the caches if streaming."""
    offset, rest, divisor = look(own, 0), look(own, TILE), look(own, 2 * TILE)
    factor, shift, scale = look(own, 3 * TILE), look(own, 4 * TILE), look(own, 5 * TILE)
    bounded = low > -math.inf or high < math.inf
    head = min(length, before_line(y)) if streaming else 0
    end = head + (length - head) // LANES * LANES
    for i in range(head, end, LANES):
        if streaming:
            fetch_ahead(x, i, LANES)
        values = apply_lanes(
            load_lanes(x, i), is_wide(x), offset, rest, divisor, factor, shift, scale, low, high, bounded
        )
        if streaming:
            stream_lanes(y, i, values)
        else:
            store_lanes(y, i, values)
    for i in range(head + length - end):  # what is left at both sides
        apply_column(x, y, i if i < head else end + (i - head), own, low, high)


@inlined
def apply_block(
    x: Any, y: Any, rows: int, channels: int, length: int, stride: int, after: int, own: Any,
    low: float, high: float, mask: Any, mask_row: int, mask_channel: int, mask_one: int, masked: bool,
    scratch: Any, staged: bool, streaming: bool,
) -> None:  # fmt: skip
    """Rows of a block by coefficients from a table; by way of scratch if staged, past the caches if streaming."""
    side_by_side = after < LONG_RUN
    if not masked and not side_by_side:
        for row in range(rows):
            for c in range(channels):
                here = row * stride + c * after
                apply_run(at(x, here), at(y, here), length, at(own, c), low, high, streaming)
        return
    lines = LANES * item_bytes(y)
    aligned = address(y) % lines == 0 and stride * item_bytes(y) % lines == 0
    if not masked and (aligned or not streaming):
        apply_columns(x, y, rows, stride, channels * after, own, low, high, streaming)
        return
    for row in range(rows):
        for c in range(0, channels, channels if side_by_side else 1):
            whole = channels * after if side_by_side else length
            for start in range(0, whole, AT_ONCE):
                count = min(AT_ONCE, whole - start)
                here = row * stride + c * after + start
                source, target = at(x, here), at(y, here)
                into = scratch if staged else target
                if side_by_side:
                    apply_columns(source, into, 1, 0, count, at(own, start), low, high, False)
                else:
                    apply_run(source, into, count, at(own, c), low, high, False)
                if masked and side_by_side and mask_channel == 0 and (mask_one == 0 or after == 1):
                    if not flag(mask, row * mask_row):
                        for i in range(count):
                            store(into, i, load(source, i))
                elif masked and side_by_side:  # columns of a tile are never cut
                    for channel in range(channels):
                        real = at(mask, row * mask_row + channel * mask_channel)
                        for place in range(after):
                            if not flag(real, place * mask_one):
                                store(into, channel * after + place, load(source, channel * after + place))
                elif masked:
                    real = at(mask, row * mask_row + c * mask_channel + start * mask_one)
                    for i in range(count):
                        if not flag(real, i * mask_one):
                            store(into, i, load(source, i))
                if streaming:
                    flush(target, scratch, count)
                elif staged:
                    for i in range(count):
                        copied(target, scratch, i)


@kernel(X, Y, INTS, INTS, INT, F64, REAL, REAL, BYTES, F64, Y)
def block_apply(
    x: Any, y: Any, plan: Any, turns: Any, total: int, by: Any, low: float, high: float, mask: Any, table: Any,
    scratch: Any,
) -> None:  # fmt: skip
    """The blocks of x (A, C, B), in turns, cut as in `moments.block_moments`, by coefficients (5, C).

    plan is A, C, B; rows of A, values of B, channels in a block; the mask's strides; whether there is one, whether the
    output goes by way of scratch, and whether from there past the caches.
    """
    before, channels, after = whole(plan, 0), whole(plan, 1), whole(plan, 2)
    rows, span, tile = whole(plan, 3), whole(plan, 4), whole(plan, 5)
    mask_row, mask_channel, mask_one = whole(plan, 6), whole(plan, 7), whole(plan, 8)
    masked, staged, streaming = whole(plan, 9) != 0, whole(plan, 10) != 0, whole(plan, 11) != 0
    tiles, spans = (channels + tile - 1) // tile, (after + span - 1) // span
    block = begin(turns, total)
    while block < total:
        row, place = (block // (tiles * spans)) * rows, (block % spans) * span
        channel = ((block // spans) % tiles) * tile
        height, length = min(rows, before - row), min(span, after - place)
        width = min(tile, channels - channel)
        here = (row * channels + channel) * after + place
        own = at(by, channel)
        for c in range(width):
            tabulate(
                table, c, is_wide(x), load(own, c), load(own, channels + c), load(own, 2 * channels + c),
                load(own, 3 * channels + c), load(own, 4 * channels + c),
            )  # fmt: skip
        apply_block(
            at(x, here), at(y, here), height, width, length, channels * after, after,
            spread(table, width, after if after < LONG_RUN else 1), low, high,
            at(mask, row * mask_row + channel * mask_channel + place * mask_one), mask_row, mask_channel, mask_one,
            masked, scratch, staged, streaming,
        )  # fmt: skip
        block = follow(turns, block, total)
    if streaming:
        streamed()
