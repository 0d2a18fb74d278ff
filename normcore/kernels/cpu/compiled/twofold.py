"""Double-double arithmetic on numbers: what normcore.twofold does to tensors, word for word.

No fast-math: the compiler may not reorder or contract what this depends on.
"""

from __future__ import annotations

from typing import Any

from normcore.kernels.cpu.compiled.language import inlined

_SPLITTER = 2.0**27 + 1


@inlined
def finite(low: float) -> Any:
    """A low word, 0 where it could not be had."""
    return low if low - low == 0.0 else 0.0


@inlined
def two_sum(a: float, b: float) -> Any:
    """a + b exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, finite((a - (total - part)) + (b - part))


@inlined
def quick_two_sum(a: float, b: float) -> Any:
    """a + b exactly, where |a| >= |b| (Dekker)."""
    total = a + b
    return total, finite(b - (total - a))


@inlined
def _split(a: float) -> Any:
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


@inlined
def two_prod(a: float, b: float) -> Any:
    """a * b exactly (Dekker)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return product, finite(((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low)


@inlined
def add(a: float, a_low: float, b: float, b_low: float) -> Any:
    """a + b."""
    high, carry = two_sum(a, b)
    low, rest = two_sum(a_low, b_low)
    high, carry = quick_two_sum(high, carry + low)
    return quick_two_sum(high, carry + rest)


@inlined
def mul(a: float, a_low: float, b: float, b_low: float) -> Any:
    """a * b."""
    high, low = two_prod(a, b)
    return quick_two_sum(high, low + finite(a * b_low + a_low * b))


@inlined
def div(a: float, a_low: float, b: float, b_low: float) -> Any:
    """a / b, where b is not 0."""
    first = a / b
    high, low = mul(b, b_low, first, 0.0)
    rest, rest_low = add(a, a_low, -high, -low)
    second = rest / b
    high, low = mul(b, b_low, second, 0.0)
    rest, rest_low = add(rest, rest_low, -high, -low)
    high, low = quick_two_sum(first, finite(second))
    return add(high, low, finite(rest / b), 0.0)
