"""Merging moments: many elements of a stack into one, tile by tile of features, so that all of it is vector arithmetic.

See normcore.algebra.reduce, which defines it.
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.base import COUNT, M2, M2_LOW, MAX, MEAN, MEAN_LOW, MIN
from normcore.kernels.cpu.compiled.language import (
    F64,
    FLAG,
    INT,
    INTS,
    REAL,
    at,
    begin,
    follow,
    get,
    inlined,
    kernel,
    put,
)
from normcore.kernels.cpu.compiled.twofold import add, div, mul

# Features side by side, whose sums fit the first-level cache.
TILE = 256
# Sums of a tile: how they lie in work.
_BEST, _N, _REF, _REF_LOW, _LOW, _HIGH, _OFF, _OFF_LOW, _M2, _M2_LOW, _SQUARES, _SQUARES_LOW = range(0, 12 * TILE, TILE)
WORK = 12 * TILE


@inlined
def _heaviest(
    values: Any, elements: int, stride: int, C: int, width: int, factors: Any, scaled: bool, work: Any
) -> None:
    """Total weight, smallest and largest value, and the mean of what weighs most."""
    for c in range(width):
        for row in range(0, WORK, TILE):
            put(work, row + c, 0.0)
        put(work, _LOW + c, math.inf)
        put(work, _HIGH + c, -math.inf)
    for k in range(elements):
        one = at(values, k * stride)
        for c in range(width):
            weight = get(one, c)
            seen = weight > 0.0
            low, high = get(one, MIN * C + c), get(one, MAX * C + c)
            lowest, highest = get(work, _LOW + c), get(work, _HIGH + c)
            put(work, _LOW + c, low if seen and low < lowest else lowest)
            put(work, _HIGH + c, high if seen and high > highest else highest)
            weight = weight if seen else 0.0
            if scaled:
                weight *= get(factors, k * C + c)
            put(work, _N + c, get(work, _N + c) + weight)
            best = get(work, _BEST + c)
            heavier = weight > best
            put(work, _BEST + c, weight if heavier else best)
            put(work, _REF + c, get(one, MEAN * C + c) if heavier else get(work, _REF + c))
            put(work, _REF_LOW + c, get(one, MEAN_LOW * C + c) if heavier else get(work, _REF_LOW + c))


@inlined
def _sums(
    values: Any, elements: int, stride: int, C: int, width: int, factors: Any, scaled: bool, between: bool, work: Any
) -> None:  # fmt: skip
    """Sums of m2, and of distances from the reference and their squares, times weights."""
    for k in range(elements):
        one = at(values, k * stride)
        for c in range(width):
            weight = get(one, c)
            seen = weight > 0.0
            weight = weight if seen else 0.0
            part, part_low = get(one, M2 * C + c), get(one, M2_LOW * C + c)
            mean, mean_low = get(one, MEAN * C + c), get(one, MEAN_LOW * C + c)
            reference, reference_low = get(work, _REF + c), get(work, _REF_LOW + c)
            part, part_low = part if seen else 0.0, part_low if seen else 0.0
            mean, mean_low = mean if seen else reference, mean_low if seen else reference_low
            if scaled:
                factor = get(factors, k * C + c)
                weight = weight * factor
                part, part_low = mul(part, part_low, factor, 0.0)
            m2, m2_low = add(get(work, _M2 + c), get(work, _M2_LOW + c), part, part_low)
            put(work, _M2 + c, m2)
            put(work, _M2_LOW + c, m2_low)
            delta, delta_low = add(mean, mean_low, -reference, -reference_low)
            moved, moved_low = mul(delta, delta_low, weight, 0.0)
            off, off_low = add(get(work, _OFF + c), get(work, _OFF_LOW + c), moved, moved_low)
            put(work, _OFF + c, off)
            put(work, _OFF_LOW + c, off_low)
            if between:
                square, square_low = mul(moved, moved_low, delta, delta_low)
                total, total_low = add(get(work, _SQUARES + c), get(work, _SQUARES_LOW + c), square, square_low)
                put(work, _SQUARES + c, total)
                put(work, _SQUARES_LOW + c, total_low)


@inlined
def compose_features(
    values: Any, elements: int, stride: int, C: int, first: int, last: int, factors: Any, scaled: bool, between: bool,
    work: Any, out: Any,
) -> None:  # fmt: skip
    """See `compose`."""
    for start in range(first, last, TILE):
        width = min(TILE, last - start)
        here, scale, target = at(values, start), at(factors, start), at(out, start)
        _heaviest(here, elements, stride, C, width, scale, scaled, work)
        _sums(here, elements, stride, C, width, scale, scaled, between, work)
        for c in range(width):
            count = get(work, _N + c)
            seen = count > 0.0
            off, off_low = get(work, _OFF + c), get(work, _OFF_LOW + c)
            m2, m2_low = get(work, _M2 + c), get(work, _M2_LOW + c)
            shift, shift_low = div(off, off_low, count if seen else 1.0, 0.0)
            if between:
                squares, squares_low = get(work, _SQUARES + c), get(work, _SQUARES_LOW + c)
                back, back_low = mul(off, off_low, shift, shift_low)
                spread, spread_low = add(squares, squares_low, -back, -back_low)
                # Squares beyond float64 are infinite, and inf - inf must not make them NaN.
                beyond = squares == math.inf
                spread, spread_low = squares if beyond else spread, squares_low if beyond else spread_low
                more, more_low = add(m2, m2_low, spread, spread_low)
                m2, m2_low = m2 if spread < 0.0 else more, m2_low if spread < 0.0 else more_low
            mean, mean_low = add(get(work, _REF + c), get(work, _REF_LOW + c), shift, shift_low)
            put(target, COUNT * C + c, count if seen else 0.0)
            put(target, MEAN * C + c, mean if seen else 0.0)
            put(target, MEAN_LOW * C + c, mean_low if seen else 0.0)
            put(target, M2 * C + c, m2 if seen else 0.0)
            put(target, M2_LOW * C + c, m2_low if seen else 0.0)
            put(target, MIN * C + c, get(work, _LOW + c) if seen else math.inf)
            put(target, MAX * C + c, get(work, _HIGH + c) if seen else -math.inf)


@kernel(F64, INT, INT, INT, INTS, F64, FLAG, FLAG, F64, F64)
def compose(
    values: Any, elements: int, stride: int, C: int, turns: Any, factors: Any, scaled: bool, between: bool, work: Any,
    out: Any,
) -> None:  # fmt: skip
    """All K of values, `stride` apart, each (7, C), into out (7, C); tiles of features in turns.

    If scaled, weights are times factors (K, C) first. What counts 0 is not looked at.
    """
    tiles = (C + TILE - 1) // TILE
    tile = begin(turns, tiles)
    while tile < tiles:
        first = tile * TILE
        compose_features(values, elements, stride, C, first, min(C, first + TILE), factors, scaled, between, work, out)
        tile = follow(turns, tile, tiles)


@kernel(F64, INT, INT, REAL, F64)
def unbiased(values: Any, elements: int, C: int, weight: float, out: Any) -> None:
    """Each of values (K, 7, C), into out, with a count of `weight` and an m2 of weight * m2 / (count - 1)."""
    for k in range(elements):
        one, target = at(values, k * 7 * C), at(out, k * 7 * C)
        for c in range(C):
            count = get(one, c)
            seen = count > 0.0
            factor, factor_low = div(weight, 0.0, count - 1.0 if seen else 1.0, 0.0)
            m2, m2_low = mul(get(one, M2 * C + c), get(one, M2_LOW * C + c), factor, factor_low)
            put(target, COUNT * C + c, weight if seen else 0.0)
            put(target, MEAN * C + c, get(one, MEAN * C + c) if seen else 0.0)
            put(target, MEAN_LOW * C + c, get(one, MEAN_LOW * C + c) if seen else 0.0)
            put(target, M2 * C + c, m2 if seen else 0.0)
            put(target, M2_LOW * C + c, m2_low if seen else 0.0)
            put(target, MIN * C + c, get(one, MIN * C + c) if seen else math.inf)
            put(target, MAX * C + c, get(one, MAX * C + c) if seen else -math.inf)


@kernel(F64, INT, INT, REAL, REAL, REAL, F64)
def within(values: Any, elements: int, C: int, max_count: float, max_magnitude: float, max_m2: float, out: Any) -> None:
    """How many of values (K, 7, C) are no moments of real values within the limits, into out (1); NaN is in none."""
    wrong = 0
    for k in range(elements):
        one = at(values, k * 7 * C)
        for c in range(C):
            count, mean, m2 = get(one, c), get(one, MEAN * C + c), get(one, M2 * C + c)
            low, high = get(one, MIN * C + c), get(one, MAX * C + c)
            counts = (count > 0.0) & (count <= max_count) & (m2 >= 0.0) & (m2 <= max_m2)
            ordered = (low >= -max_magnitude) & (low <= mean) & (mean <= high) & (high <= max_magnitude)
            words = (mean + get(one, MEAN_LOW * C + c) == mean) & (m2 + get(one, M2_LOW * C + c) == m2)
            wrong += 0 if (counts & ordered & words) | (count == 0.0) else 1
    put(out, 0, wrong)


@kernel(F64, INT, INT, F64)
def total(values: Any, elements: int, C: int, out: Any) -> None:
    """The sum over the first axis of values (K, C) into out (C), rounded once."""
    for c in range(C):
        high = low = 0.0
        for k in range(elements):
            high, low = add(high, low, get(values, k * C + c), 0.0)
        put(out, c, high)
