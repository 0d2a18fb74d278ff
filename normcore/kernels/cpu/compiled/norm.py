"""Channels by their own moments, fused: as many channels at once as the second-level cache holds are read from memory
once, summed, merged, and written.
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.base import COUNT, M2, MAX, MEAN, MEAN_LOW, MIN
from normcore.kernels.cpu.compiled.apply import apply_block, apply_columns, spread, tabulate
from normcore.kernels.cpu.compiled.language import (
    BYTES,
    F64,
    FLAG,
    INT,
    INTS,
    REAL,
    P,
    X,
    Y,
    address,
    at,
    begin,
    float64,
    follow,
    get,
    inlined,
    is_wide,
    kernel,
    load,
    look,
    note,
    put,
    store,
    streamed,
    whole,
)
from normcore.kernels.cpu.compiled.merge import compose_features
from normcore.kernels.cpu.compiled.moments import one_block
from normcore.kernels.cpu.compiled.sums import LONG_RUN, NONFINITE, ROWS, TILE


@kernel(F64, F64, INT, REAL, P, P, F64)
def unit_coefficients(mean: Any, var: Any, channels: int, eps: float, weight: Any, bias: Any, by: Any) -> None:
    """Coefficients (5, C) of statistics that are known; no weight or bias where its address is 0."""
    weighted, biased = address(weight) != 0, address(bias) != 0
    for c in range(channels):
        store(by, c, load(mean, c))
        store(by, channels + c, 0.0)
        store(by, 2 * channels + c, math.sqrt(load(var, c) + eps))
        store(by, 3 * channels + c, float64(load(weight, c)) if weighted else 1.0)
        store(by, 4 * channels + c, float64(load(bias, c)) if biased else 0.0)


@kernel(X, Y, INT, INT, INT, F64, F64, REAL, P, P, REAL, F64)
def standardize(
    x: Any, y: Any, before: int, channels: int, after: int, mean: Any, var: Any, eps: float, weight: Any, bias: Any,
    clip: float, table: Any,
) -> None:  # fmt: skip
    """x (A, C, B), whose C * B fit a tile, by statistics that are known."""
    affine(channels, weight, bias, table)
    for c in range(channels):
        std = math.sqrt(load(var, c) + eps)
        tabulate(table, c, is_wide(x), load(mean, c), 0.0, std, look(table, c), look(table, TILE + c))
    own = spread(table, channels, after)
    apply_columns(x, y, before, channels * after, channels * after, own, -clip, clip, False)


@inlined
def affine(channels: int, weight: Any, bias: Any, table: Any) -> None:
    """Weight and bias of channels as float64, 1 and 0 where an address is 0, into the first half of a table."""
    if address(weight) != 0:
        for c in range(channels):
            note(table, c, load(weight, c))
    else:
        for c in range(channels):
            note(table, c, 1.0)
    if address(bias) != 0:
        for c in range(channels):
            note(table, TILE + c, load(bias, c))
    else:
        for c in range(channels):
            note(table, TILE + c, 0.0)


@kernel(X, Y, INTS, INTS, INT, F64, P, P, BYTES, F64, F64, F64, Y, F64, returns=FLAG)
def channel_norm(
    x: Any, y: Any, plan: Any, turns: Any, total: int, rule: Any, weight: Any, bias: Any, mask: Any,
    work: Any, table: Any, partial: Any, scratch: Any, out: Any,
) -> bool:  # fmt: skip
    """Tiles of channels of x (A, C, B), in turns, and their moments into out (8, C); whether those are all plain.

    plan is as for `apply.block_apply`, with whether to leave out what is not finite at its end. rule is eps, std_eps,
    low, high, lowest, highest: onto [low, high] where low is not NaN, else to unit variance; then kept within lowest
    and highest. partial is (K + 1, 8, tile).
    """
    before, channels, after = whole(plan, 0), whole(plan, 1), whole(plan, 2)
    rows, span, tile = whole(plan, 3), whole(plan, 4), whole(plan, 5)
    mask_row, mask_channel, mask_one = whole(plan, 6), whole(plan, 7), whole(plan, 8)
    masked, staged, streaming = whole(plan, 9) != 0, whole(plan, 10) != 0, whole(plan, 11) != 0
    omit = whole(plan, 12) != 0
    eps, std_eps, low, high = load(rule, 0), load(rule, 1), load(rule, 2), load(rule, 3)
    spans = (after + span - 1) // span
    blocks = ((before + rows - 1) // rows) * spans
    stride = channels * after
    plain = True
    number = begin(turns, total)
    while number < total:
        channel = number * tile
        width = min(tile, channels - channel)
        here = channel * after
        real = at(mask, channel * mask_channel)
        known = True
        # One block is written where it is to be; several are merged first.
        own, step = (at(out, channel), channels) if blocks == 1 else (at(partial, blocks * ROWS * width), width)
        for block in range(blocks):
            row, place = (block // spans) * rows, (block % spans) * span
            known &= one_block(
                at(x, row * stride + here + place), min(rows, before - row), stride, width, after,
                min(span, after - place), at(real, row * mask_row + place * mask_one), mask_row, mask_channel, mask_one,
                partial, masked, False, omit, work, own if blocks == 1 else at(partial, block * ROWS * width), step,
            )  # fmt: skip
        if blocks > 1:
            compose_features(partial, blocks, ROWS * width, width, 0, width, partial, False, True, work, own)
            for c in range(width):
                bad = 0.0
                for block in range(blocks):
                    bad += get(partial, (block * ROWS + NONFINITE) * width + c)
                put(own, NONFINITE * width + c, bad)
        if not known and not omit:
            for c in range(width):
                if get(own, NONFINITE * step + c) > 0.0:
                    for i in range(MEAN, NONFINITE):
                        put(own, i * step + c, math.nan)
        plain &= known
        if blocks > 1:
            for i in range(ROWS):
                for c in range(width):
                    put(out, i * channels + channel + c, get(own, i * width + c))
        if low == low:
            for c in range(width):
                smallest, largest = get(own, MIN * step + c), get(own, MAX * step + c)
                tabulate(table, c, is_wide(x), smallest, 0.0, largest - smallest, high - low, low)
        else:
            affine(
                width, at(weight, channel) if address(weight) != 0 else weight,
                at(bias, channel) if address(bias) != 0 else bias, table,
            )  # fmt: skip
            for c in range(width):
                var = get(own, M2 * step + c) / (
                    get(own, COUNT * step + c) if get(own, COUNT * step + c) > 0.0 else 1.0
                )
                tabulate(
                    table, c, is_wide(x), get(own, MEAN * step + c), get(own, MEAN_LOW * step + c),
                    math.sqrt(var + eps) + std_eps, look(table, c), look(table, TILE + c),
                )  # fmt: skip
        apply_block(
            at(x, here), at(y, here), before, width, after, stride, after,
            spread(table, width, after if after < LONG_RUN else 1), load(rule, 4), load(rule, 5), real, mask_row,
            mask_channel, mask_one, masked, scratch, staged, streaming,
        )  # fmt: skip
        number = follow(turns, number, total)
    if streaming:
        streamed()
    return plain
