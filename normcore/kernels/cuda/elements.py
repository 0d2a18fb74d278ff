"""What the kernels share: elements raised and rounded, sums over a tile, exact sums of two numbers.

Tiles are (rows, columns). FOLD says what a tile is reduced over: all of it, or its rows alone, column by column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# Typed, as Triton itself is not.
jit: Callable[[Callable[..., Any]], Any] = triton.jit

INF = tl.constexpr(float("inf"))
# Above it a float64 is infinite.
LARGEST = tl.constexpr(1.7976931348623157e308)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@jit
def raised(value: tl.tensor, TO: tl.constexpr) -> tl.tensor:
    """An element in the type that is computed in; 16-bit floats go through float32, as bfloat16 must."""
    if value.dtype == tl.float16 or value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value.to(TO)


@jit
def rounded(value: tl.tensor, TO: tl.constexpr) -> tl.tensor:
    """A float64 in the output's type; through float32, as torch does it."""
    if tl.float64 == TO:
        return value
    value = value.to(tl.float32)
    if INTERPRETED and tl.bfloat16 == TO:
        # The interpreter cuts off what the device rounds to nearest even.
        bits = value.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
        value = tl.where(tl.abs(value) < INF, nearest, value)
    return value.to(TO)


@jit
def summed(value: tl.tensor, FOLD: tl.constexpr) -> tl.tensor:
    """Sums (1, 1) or (1, columns)."""
    if FOLD:
        value = tl.sum(value, 1, keep_dims=True)
    return tl.sum(value, 0, keep_dims=True)


@jit
def least(value: tl.tensor, FOLD: tl.constexpr) -> tl.tensor:
    """Smallest values (1, 1) or (1, columns)."""
    if FOLD:
        value = tl.min(value, 1, keep_dims=True)
    return tl.min(value, 0, keep_dims=True)


@jit
def most(value: tl.tensor, FOLD: tl.constexpr) -> tl.tensor:
    """Largest values (1, 1) or (1, columns)."""
    if FOLD:
        value = tl.max(value, 1, keep_dims=True)
    return tl.max(value, 0, keep_dims=True)


@jit
def nonzero(divisor: tl.tensor) -> tl.tensor:
    """The divisor, 1 where it is 0."""
    return tl.where(divisor == 0, 1.0, divisor)


@jit
def two_sum(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a + b as high and low word (Knuth); the low word is 0 where it cannot be had."""
    high = a + b
    part = high - a
    low = (a - (high - part)) + (b - part)
    return high, tl.where(low - low == 0, low, 0.0)


@jit
def centre(value: tl.tensor, real: tl.tensor, FOLD: tl.constexpr) -> tl.tensor:
    """About the mean of what is real in a tile, in the tile's own type, and how many that is.

    Shifted by the smallest value, so that equal values have exactly themselves as centre.
    """
    count = summed(real.to(tl.int32), FOLD)
    smallest = least(tl.where(real, value, INF), FOLD)
    smallest = tl.where(count > 0, smallest, 0.0)
    n = tl.where(count > 0, count, 1).to(value.dtype)
    mean = smallest + summed(tl.where(real, value - smallest, 0.0), FOLD) / n
    # Any centre will do; where float32 overflows, the smallest value is one.
    return tl.where(tl.abs(mean) < INF, mean, smallest), count


@jit
def about(centre: tl.tensor, n: tl.tensor, first: tl.tensor, second: tl.tensor) -> tl.tensor:
    """Mean, its low word and m2 of n values with these sums of deviations and of their squares about a centre."""
    shift = first / tl.where(n > 0, n, 1.0)
    m2 = second - first * shift
    # A NaN stays one, and squares that overflow are infinite: never inf - inf.
    m2 = tl.where(second == INF, INF, tl.where(m2 < 0, 0.0, m2))
    mean, rest = two_sum(centre, shift)
    return mean, rest, m2
