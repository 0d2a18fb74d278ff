"""Double-double arithmetic: a value is the unevaluated sum of two float64, about 32 decimal digits.

Elementwise on tensors of any broadcastable shapes. After Dekker, "A floating-point technique for extending the
available precision", Numer. Math. 18 (1971); Knuth, TAOCP 2, section 4.2.2; and Hida, Li, Bailey, "Algorithms for
quad-double precision floating point arithmetic", ARITH 15 (2001), whose accurate add and three-step division are used.

Each operation errs by at most some 2^-102 of its result. Where the high word is not finite, or a product's error
cannot be had (a factor above 2^996, a product below 2^-968), the answer is the plain float64 one and never a stray NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_SPLITTER = 2.0**27 + 1


class Twofold(NamedTuple):
    """hi + lo, where hi is the sum rounded to float64."""

    hi: Tensor
    lo: Tensor


def from_double(value: Tensor) -> Twofold:
    """The double-double of a float64 tensor."""
    return Twofold(value, torch.zeros_like(value))


def two_sum(a: Tensor, b: Tensor) -> Twofold:
    """a + b exactly (Knuth)."""
    total = a + b
    b_part = total - a
    return Twofold(total, _finite((a - (total - b_part)) + (b - b_part)))


def two_prod(a: Tensor, b: Tensor) -> Twofold:
    """a * b exactly (Dekker): factors are split in halves, as torch has no fused multiply-add."""
    product = a * b
    a_hi, a_lo = _split(a)
    b_hi, b_lo = _split(b)
    return Twofold(product, _finite(((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo))


def add(a: Twofold, b: Twofold) -> Twofold:
    """a + b."""
    hi, carry = two_sum(a.hi, b.hi)
    lo, rest = two_sum(a.lo, b.lo)
    hi, carry = _quick_two_sum(hi, carry + lo)
    return _quick_two_sum(hi, carry + rest)


def neg(a: Twofold) -> Twofold:
    """The negative of a."""
    return Twofold(-a.hi, -a.lo)


def sub(a: Twofold, b: Twofold) -> Twofold:
    """a - b."""
    return add(a, neg(b))


def mul(a: Twofold, b: Twofold) -> Twofold:
    """a * b."""
    hi, lo = two_prod(a.hi, b.hi)
    return _quick_two_sum(hi, lo + _finite(a.hi * b.lo + a.lo * b.hi))


def div(a: Twofold, b: Twofold) -> Twofold:
    """a / b, where b is not 0."""
    first = a.hi / b.hi
    rest = sub(a, mul(b, from_double(first)))
    second = rest.hi / b.hi
    rest = sub(rest, mul(b, from_double(second)))
    hi, lo = _quick_two_sum(first, _finite(second))
    return add(Twofold(hi, lo), from_double(_finite(rest.hi / b.hi)))


def each(function: Callable[[Tensor], Tensor], value: Twofold) -> Twofold:
    """The function of each word."""
    return Twofold(function(value.hi), function(value.lo))


def total(values: Twofold) -> Twofold:
    """The sum along the first axis, in its order, as the compiled kernels add: every word is the same as theirs."""
    result = from_double(torch.zeros_like(values.hi[0]))
    for hi, lo in zip(values.hi, values.lo, strict=True):
        result = add(result, Twofold(hi, lo))
    return result


def at_least_0(value: Twofold) -> Twofold:
    """The value, 0 where rounding has made it negative."""
    negative = value.hi < 0
    return each(lambda t: torch.where(negative, 0.0, t), value)


def _quick_two_sum(a: Tensor, b: Tensor) -> Twofold:
    """a + b exactly, where |a| >= |b| (Dekker)."""
    total = a + b
    return Twofold(total, _finite(b - (total - a)))


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    scaled = _SPLITTER * a
    hi = scaled - (scaled - a)
    return hi, a - hi


def _finite(low: Tensor) -> Tensor:
    """A low word, 0 where it could not be had."""
    return torch.nan_to_num(low, nan=0.0, posinf=0.0, neginf=0.0)
