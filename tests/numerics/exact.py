"""Exact answers: statistics in rational arithmetic, outputs with 80 digits; and how far floating-point ones are off.

Statistics come from whole numbers, as every float is one times a power of 2: nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from normcore.kernels.base import COUNT, M2, M2_LOW, MAX, MEAN, MEAN_LOW, MIN, Coefficients

EPS = torch.finfo(torch.float64).eps
_SMALLEST = Fraction(5e-324)
_NORMAL = Decimal(torch.finfo(torch.float64).smallest_normal)


class Statistics(NamedTuple):
    """Of some values with their weights."""

    count: Fraction
    mean: Fraction
    m2: Fraction
    min: float
    max: float


class Line(NamedTuple):
    """Exact outputs, and for each the size of the terms that add up to it: what it may cancel from."""

    outputs: list[Decimal]
    terms: list[Decimal]


def statistics_of(values: Sequence[float], weights: Sequence[float] | None = None) -> Statistics:
    """The statistics of at least one value."""
    numbers, scale = _whole(values)
    shares, share_scale = ([1] * len(numbers), 1) if weights is None else _whole(weights)
    count = sum(shares)
    first = sum(share * number for share, number in zip(shares, numbers, strict=True))
    second = sum(share * number * number for share, number in zip(shares, numbers, strict=True))
    m2 = Fraction(count * second - first * first, count * scale * scale * share_scale)
    return Statistics(
        Fraction(count, share_scale), Fraction(first, count * scale), m2, float(min(values)), float(max(values))
    )


class MomentErrors(NamedTuple):
    """Of the count and m2 in eps of themselves, of the mean in eps of a deviation."""

    count: float
    mean: float
    m2: float


def moment_errors(values: Tensor, exact: Statistics) -> MomentErrors:
    """How far packed moments (7,) of one channel are off, low words included.

    What rounding to the smallest float64 costs each square, half of that, is no error of m2, nor that of a mean. Where
    the deviation is 0, any error is infinite. min and max are exact, and the high word of the mean is the mean rounded.
    """
    packed = [Fraction(value) for value in values.tolist()]
    assert (packed[MIN], packed[MAX]) == (exact.min, exact.max)
    assert values[MEAN] + values[MEAN_LOW] == values[MEAN]
    with _digits():
        deviation = Fraction(_decimal(exact.m2 / exact.count).sqrt())
    mean_off = abs(packed[MEAN] + packed[MEAN_LOW] - exact.mean) - (_SMALLEST if deviation else 0)
    m2_off = abs(packed[M2] + packed[M2_LOW] - exact.m2) - exact.count * _SMALLEST
    return MomentErrors(
        _in_eps(abs(packed[COUNT] - exact.count), exact.count),
        _in_eps(max(mean_off, Fraction(0)), deviation),
        _in_eps(max(m2_off, Fraction(0)), exact.m2),
    )


def normalized(
    values: Sequence[float],
    eps: float,
    *,
    center: bool = True,
    std_eps: float = 0.0,
    weight: Sequence[float] | None = None,
    bias: Sequence[float] | None = None,
    of: Statistics | None = None,
) -> Line:
    """(x - mean) / (sqrt(var + eps) + std_eps) * weight + bias, by their own statistics or given ones."""
    with _digits():
        own = of or statistics_of(values)
        mean = _decimal(own.mean) if center else Decimal(0)
        var = _decimal(own.m2 / own.count if center else own.m2 / own.count + own.mean**2)
        divisor = (var + Decimal(eps)).sqrt() + Decimal(std_eps) or Decimal(1)
        # What a value is rounded beside: a deviation of outputs, or what a subnormal mean's rounding is eps of.
        spread = max(var.sqrt(), _NORMAL) / divisor
        return _line([(Decimal(value) - mean) / divisor for value in values], spread, weight, bias)


def applied(values: Sequence[float], by: Coefficients, channel: int) -> Line:
    """What coefficients make of values of one channel."""
    with _digits():
        offset, low, divisor, factor, shift = (Decimal(float(row[channel])) for row in by.values)
        divisor = divisor or Decimal(1)
        scaled = [(Decimal(value) - offset - low) / divisor for value in values]
        line = _line(scaled, abs(offset / divisor), [float(factor)] * len(values), [float(shift)] * len(values))
        ends = [Decimal(by.low), Decimal(by.high)]
        return line._replace(outputs=[max(ends[0], min(ends[1], value)) for value in line.outputs])


def ranged(values: Sequence[float], low: float, high: float) -> Line:
    """(x - min) / (max - min) * (high - low) + low."""
    with _digits():
        smallest = Decimal(min(values))
        span = Decimal(max(values)) - smallest or Decimal(1)
        scaled = [(Decimal(value) - smallest) / span for value in values]
        factor = [high - low] * len(values)  # as it is rounded: a rule's own arithmetic is no kernel's
        return _line(scaled, Decimal(0), factor, [low] * len(values))


def by_power(values: Sequence[float], p: float, eps: float) -> Line:
    """x / max(norm, eps)."""
    with _digits():
        sizes = [abs(Decimal(value)) for value in values]
        if p == math.inf:
            norm = max(sizes)
        elif p == 2:
            norm = sum((size * size for size in sizes), Decimal(0)).sqrt()
        else:
            norm = sum((size ** Decimal(p) for size in sizes if size), Decimal(0))
            norm = norm ** (1 / Decimal(p)) if norm else norm
        norm = max(norm, Decimal(eps)) or Decimal(1)
        line = _line([Decimal(value) / norm for value in values], Decimal(0), None, None)
        # A subnormal norm is rounded as the least of the normal ones.
        return line._replace(terms=[terms * max(1, _NORMAL / norm) for terms in line.terms])


def beside_neighbours(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Line:
    """x (N, C, L) / (k + alpha / size * sum of squares around) ** beta, in memory's order."""
    with _digits():
        outputs = []
        for sample in x.double().tolist():
            for c in range(len(sample)):
                around = sample[max(0, c - size // 2) : c + (size - 1) // 2 + 1]
                for position, value in enumerate(sample[c]):
                    squares = sum((Decimal(other[position]) ** 2 for other in around), Decimal(0))
                    outputs.append(Decimal(value) / (Decimal(k) + Decimal(alpha) / size * squares) ** Decimal(beta))
        return _line(outputs, Decimal(0), None, None)


def joined(lines: Iterable[Line]) -> Line:
    """One after another."""
    outputs: list[Decimal] = []
    terms: list[Decimal] = []
    for line in lines:
        outputs += line.outputs
        terms += line.terms
    return Line(outputs, terms)


def ulps(y: Tensor, line: Line, share: float) -> float:
    """The largest error of y in ulp of its type; where an output is less than a share of its terms, of that share."""
    info = torch.finfo(y.dtype)
    worst = 0.0
    with _digits():
        for value, output, terms in zip(y.double().flatten().tolist(), *line, strict=True):
            size = max(abs(output), terms * Decimal(share), Decimal(info.smallest_normal))
            # frexp's fraction is in [1/2, 1): the binade's lower end is 2 ** (exponent - 1).
            exponent = math.frexp(float(size))[1] - 1 if size < Decimal(info.max) else 0
            error = abs(Decimal(value) - output) / Decimal(math.ldexp(info.eps, exponent))
            worst = _worse(worst, float(error))
    return worst


def epsilons(y: Tensor, line: Line) -> float:
    """The largest error of y in eps of its type times the size of an output and its terms."""
    eps, smallest = Decimal(torch.finfo(y.dtype).eps), Decimal(torch.finfo(y.dtype).smallest_normal)
    worst = 0.0
    with _digits():
        for value, output, terms in zip(y.double().flatten().tolist(), *line, strict=True):
            worst = _worse(worst, float(abs(Decimal(value) - output) / (eps * max(abs(output) + terms, smallest))))
    return worst


def _worse(worst: float, figure: float) -> float:
    """The larger; a NaN is the worst of all."""
    return worst if figure <= worst else figure


def _line(scaled: list[Decimal], spread: Decimal, weight: Sequence[float] | None, bias: Sequence[float] | None) -> Line:
    count = len(scaled)
    weights = [Decimal(1)] * count if weight is None else [Decimal(value) for value in weight]
    biases = [Decimal(0)] * count if bias is None else [Decimal(value) for value in bias]
    each = list(zip(scaled, weights, biases, strict=True))
    return Line(
        [value * factor + shift for value, factor, shift in each],
        [(abs(value) + spread) * abs(factor) + abs(shift) for value, factor, shift in each],
    )


def _whole(values: Sequence[float]) -> tuple[list[int], int]:
    """Whole numbers, and the power of 2 that they are to be divided by."""
    ratios = [value.as_integer_ratio() for value in values]
    scale = max(below for _, below in ratios)
    return [above * (scale // below) for above, below in ratios], scale


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _in_eps(error: Fraction, size: Fraction) -> float:
    if error == 0:
        return 0.0
    return float(error / size) / EPS if size else math.inf


@contextmanager
def _digits() -> Iterator[None]:
    """Decimal arithmetic of 80 digits, whose exponents are never too large."""
    with localcontext(Context(prec=80, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        yield
