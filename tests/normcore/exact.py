"""Exact moments in rational arithmetic: what floating-point results are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from torch import Tensor


def mean_of(values: Iterable[float]) -> Fraction:
    exact = [Fraction(value) for value in values]
    return sum(exact, Fraction(0)) / len(exact)


def m2_of(values: Iterable[float]) -> Fraction:
    exact = [Fraction(value) for value in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    return sum(((value - mean) ** 2 for value in exact), Fraction(0))


def relative_error(value: Tensor | float, exact: Fraction) -> float:
    difference = abs(Fraction(float(value)) - exact)
    return float(difference / abs(exact)) if exact else float(difference)
