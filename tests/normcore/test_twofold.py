from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normcore import twofold
from normcore.twofold import Twofold

# Magnitudes whose products' errors neither overflow nor underflow: what the double-double promise covers.
doubles = st.floats(min_value=1e-60, max_value=1e60) | st.floats(min_value=-1e60, max_value=-1e-60)
BOUND = Fraction(1, 2**102)


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def exact(value: Twofold) -> Fraction:
    return Fraction(value.hi.item()) + Fraction(value.lo.item())


def twofold_of(a: float, b: float) -> Twofold:
    """A double-double with both words in use."""
    return twofold.two_sum(tensor(a), tensor(a * 2.0**-53 * (b % 1.0)))


@settings(deadline=None)
@given(doubles, doubles)
def test_a_sum_and_a_product_of_doubles_are_exact(a: float, b: float) -> None:
    assert exact(twofold.two_sum(tensor(a), tensor(b))) == Fraction(a) + Fraction(b)
    assert exact(twofold.two_prod(tensor(a), tensor(b))) == Fraction(a) * Fraction(b)


@pytest.mark.parametrize(
    ("operation", "truth"),
    [
        (twofold.add, lambda a, b: a + b),
        (twofold.sub, lambda a, b: a - b),
        (twofold.mul, lambda a, b: a * b),
        (twofold.div, lambda a, b: a / b),
    ],
)
def test_operations_keep_102_bits(
    operation: Callable[[Twofold, Twofold], Twofold], truth: Callable[[Fraction, Fraction], Fraction]
) -> None:
    @settings(deadline=None)
    @given(doubles, doubles, doubles)
    def holds(a: float, b: float, c: float) -> None:
        left, right = twofold_of(a, c), twofold_of(b, c)
        expected = truth(exact(left), exact(right))
        # Of a sum the error is relative to its terms' low words at worst: the accurate add of Hida, Li, Bailey.
        scale = max(abs(expected), (abs(exact(left)) + abs(exact(right))) * Fraction(1, 2**53) * (operation in SUMS))
        assert abs(exact(operation(left, right)) - expected) <= BOUND * scale

    holds()


@given(doubles, doubles)
@settings(deadline=None)
def test_what_high_words_that_cancel_leave_is_exact(a: float, b: float) -> None:
    low = [tensor(value * 2.0**-53 / max(abs(a), abs(b))) for value in (a, b)]
    left, right = Twofold(tensor(1.0), low[0] / 4), Twofold(tensor(-1.0), low[1] / 4)
    assert exact(twofold.add(left, right)) == exact(left) + exact(right)


SUMS = (twofold.add, twofold.sub)


@pytest.mark.parametrize("operation", [twofold.add, twofold.sub, twofold.mul, twofold.div])
@pytest.mark.parametrize("a", [0.0, 1.5, 1e308, torch.inf])
@pytest.mark.parametrize("b", [1e-308, 2.5, 1e308, torch.inf])
def test_low_words_are_never_nan(operation: Callable[[Twofold, Twofold], Twofold], a: float, b: float) -> None:
    result = operation(twofold.from_double(tensor(a)), twofold.from_double(tensor(b)))
    assert torch.isfinite(result.lo)
    plain = {twofold.add: a + b, twofold.sub: a - b, twofold.mul: a * b, twofold.div: a / b}[operation]
    torch.testing.assert_close(result.hi, tensor(plain), rtol=1e-15, atol=0, equal_nan=True)


def test_shapes_broadcast() -> None:
    column, row = torch.ones(3, 1, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    product = twofold.mul(twofold.from_double(column), twofold.from_double(row))
    assert product.hi.shape == product.lo.shape == (3, 4)
