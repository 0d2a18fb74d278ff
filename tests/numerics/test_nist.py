"""Univariate summary statistics of the NIST Statistical Reference Datasets: digits of the standard deviation.

Digits are -log10 of the relative error against the certified value. Their ceiling is what exact arithmetic has on the
values rounded to float64; beyond 15.9 there are none in a float64.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import pytest
import torch

import normcore
from normcore.kernels.base import M2, M2_LOW, MEAN
from tests.numerics.conftest import Worst
from tests.numerics.exact import EPS, statistics_of
from tests.numerics.rooms import Room

# Michelson's speeds of light in air, km/s less 299,000.
MICHELSON = """
    850 740 900 1070 930 850 950 980 980 880 1000 980 930 650 760 810 1000 1000 960 960 960 940 960 940 880 800 850 880
    900 840 830 790 810 880 880 830 800 790 760 800 880 880 880 860 720 720 620 860 970 950 880 910 850 870 840 840 850
    840 840 840 890 810 810 820 800 770 760 740 750 760 910 920 890 860 880 720 840 850 850 780 890 840 780 810 760 810
    790 810 820 850 870 870 810 740 810 940 950 800 810 870
"""
MOST = 15.9
# Values, certified mean and deviation, and the ceiling.
DATA: dict[str, tuple[list[float], str, str, float]] = {
    "NumAcc1": ([10000001.0, 10000003.0, 10000002.0], "10000002", "1", MOST),
    "NumAcc2": ([1.2, *(1.1, 1.3) * 500], "1.2", "0.1", 15.7),
    "NumAcc3": ([1000000.2, *(1000000.1, 1000000.3) * 500], "1000000.2", "0.1", 9.5),
    "NumAcc4": ([10000000.2, *(10000000.1, 10000000.3) * 500], "10000000.2", "0.1", 8.3),
    "Michelso": (
        [float(f"{(299000 + int(one)) / 1000:.2f}") for one in MICHELSON.split()],
        "299.8524",
        "0.0790105478190518",
        13.8,
    ),
}


def digits(value: Fraction, certified: str) -> float:
    """Of a value, against a certified one as it is printed."""
    error = abs(value / Fraction(certified) - 1)
    return min(-math.log10(error), MOST) if error else MOST


def deviation(m2: Fraction, count: int) -> Fraction:
    """The sample's, to 40 digits: what is asked of is m2."""
    with localcontext(Context(prec=40)):
        return Fraction((Decimal(m2.numerator) / Decimal(m2.denominator) / (count - 1)).sqrt())


@pytest.mark.parametrize("name", DATA)
def test_the_certified_deviation_has_all_digits_that_exact_arithmetic_has(room: Room, name: str, worst: Worst) -> None:
    values, mean, certified, ceiling = DATA[name]
    count, exact = len(values), statistics_of(values)
    assert round(digits(deviation(exact.m2, count), certified), 1) == ceiling
    x = torch.tensor(values, dtype=torch.float64)
    for shape in ((-1, 1, 1), (1, 1, -1)):
        parts = [normcore.Moments(room.channel_moments(part.reshape(shape))) for part in x.tensor_split(min(7, count))]
        for found in (room.channel_moments(x.reshape(shape)), normcore.merge_all(parts).values):
            seen = digits(deviation(Fraction(found[M2].item()) + Fraction(found[M2_LOW].item()), count), certified)
            # A ceiling is printed to a tenth of a digit. Of 1,001 squares in 32 lanes each adds some 30: sqrt(30) / 2
            # and the rounding of m2 are 4 eps, and 2 of the deviation.
            allowed = 0.05 + ceiling + math.log10(10**-ceiling + 2 * EPS)
            worst(f"NIST {name} ({room.name})", torch.float64, ceiling - seen, f"digits short of {ceiling}", allowed)
            assert digits(Fraction(found[MEAN].item()), mean) > 15
