"""Moments are a commutative monoid, and their sums are as good as rational arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normcore.errors import InvalidParameter, ShapeMismatch
from normcore.moments import ROWS, Moments, merge, merge_all, moments_of, pool, scale, variance, violations
from tests.normcore.exact import m2_of, mean_of, relative_error

EPS = 2.0**-52
values = st.floats(min_value=-1e12, max_value=1e12, allow_subnormal=False).map(lambda v: v if abs(v) > 1e-12 else 0.0)
batches = st.lists(values, max_size=6)


def column(rows: list[float]) -> Moments:
    return moments_of(torch.tensor(rows, dtype=torch.float64).reshape(-1, 1), 1)


def words(moments: Moments) -> list[list[float]]:
    return [getattr(moments, name).reshape(-1).tolist() for name in ("count", "mean", "m2", "min", "max")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_near(moments: Moments, rows: list[float]) -> None:
    """Within the rounding of the batches' own sums: a few eps of the largest magnitude, and of its square."""
    largest = max((abs(row) for row in rows), default=0.0)
    assert moments.count.item() == len(rows)
    if rows:
        assert abs(Fraction(moments.mean.item()) - mean_of(rows)) <= 4 * EPS * largest
        assert abs(Fraction(moments.m2.item()) - m2_of(rows)) <= 16 * EPS * m2_of(rows) + 16 * EPS**2 * largest**2
        assert (moments.min.item(), moments.max.item()) == (min(rows), max(rows))


@settings(deadline=None)
@given(batches, batches, batches)
def test_merging_is_associative_and_gives_the_moments_of_all_rows(
    a: list[float], b: list[float], c: list[float]
) -> None:
    left = merge(merge(column(a), column(b)), column(c))
    right = merge(column(a), merge(column(b), column(c)))
    assert_near(left, a + b + c)
    assert_near(right, a + b + c)


@settings(deadline=None)
@given(batches, batches)
def test_merging_is_commutative(a: list[float], b: list[float]) -> None:
    one, other = merge(column(a), column(b)), merge(column(b), column(a))
    assert one.count.item() == other.count.item()
    for name in ("mean", "m2"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-15, atol=1e-15 * 1e-15)


@settings(deadline=None)
@given(batches)
def test_an_empty_side_gives_exactly_the_other(rows: list[float]) -> None:
    moments, empty = column(rows), Moments.empty(1)
    for both in (merge(moments, empty), merge(empty, moments), pool(moments, empty), pool(empty, moments)):
        assert words(both) == words(moments)
        assert both.mean_low.tolist() == moments.mean_low.tolist()
        assert both.m2_low.tolist() == moments.m2_low.tolist()


def test_eight_partials_merged_in_any_order_give_one_bit_pattern() -> None:
    x = 1e6 + random(800, 3)
    parts = [moments_of(part, 1) for part in x.split([1, 9, 90, 100, 150, 150, 140, 160])]
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for _ in range(100):
        order = torch.randperm(8, generator=generator).tolist()
        folded = parts[order[0]]
        for index in order[1:]:
            folded = merge(folded, parts[index])
        tree = merge_all([parts[index] for index in order])
        seen |= {str(words(folded)), str(words(tree))}
    assert len(seen) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_merging_all_at_once_is_merging_one_by_one(size: int) -> None:
    x = random(size * 7, 4)
    parts = [moments_of(part, 1) for part in x.split(7)]
    folded = parts[0]
    for part in parts[1:]:
        folded = merge(folded, part)
    assert words(merge_all(parts)) == words(folded)


def test_counts_that_differ_by_feature_merge_with_counts_that_do_not() -> None:
    x = random(10, 3)
    mask = torch.ones(10, 3, dtype=torch.bool)
    mask[4:, 1] = False
    both = merge_all([moments_of(x[:5], 1), moments_of(x[5:], 1, mask=mask[5:])])
    assert both.count.tolist() == [10, 5, 10]
    torch.testing.assert_close(both.mean[1], x[:5, 1].mean(), rtol=1e-15, atol=1e-15)


def test_equal_means_merge_to_that_mean_and_add_no_variance() -> None:
    constant = moments_of(torch.full((7, 2), 0.1, dtype=torch.float64), 1)
    both = merge_all([constant] * 11)
    assert both.mean.tolist() == [0.1, 0.1]
    assert both.m2.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("mean", "dtype"), [(1e6, torch.float32), (1e8, torch.float64)], ids=["1e6 float32", "1e8 float64"]
)
@pytest.mark.parametrize("parts", [1, 50], ids=["one batch", "50 merges"])
def test_twelve_digits_of_the_variance_survive_a_large_mean(mean: float, dtype: torch.dtype, parts: int) -> None:
    x = (mean + random(5000)).to(dtype).reshape(-1, 1)
    total = Moments.empty(1)
    for part in x.split(5000 // parts):
        total = merge(total, moments_of(part, 1))
    stored = x.double().reshape(-1).tolist()
    assert relative_error(variance(total), m2_of(stored) / 5000) < 1e-12
    assert relative_error(total.mean, mean_of(stored)) <= EPS / 2


def test_a_mean_of_1e15_deviations_keeps_what_float64_holds() -> None:
    x = (1e15 + random(1001)).reshape(-1, 1)
    stored = x.reshape(-1).tolist()
    for total in (moments_of(x, 1), merge_all([moments_of(part, 1) for part in x.split(100)])):
        assert relative_error(total.m2, m2_of(stored)) < 1e-13


@pytest.mark.parametrize("base", [1e1, 1e6, 1e7], ids=["NumAcc2", "NumAcc3", "NumAcc4"])
def test_alternating_tenths_on_a_large_base_keep_every_digit_of_the_stored_values(base: float) -> None:
    stored = [base + 0.2, *(base + 0.1, base + 0.3) * 500]
    x = torch.tensor(stored, dtype=torch.float64).reshape(-1, 1)
    for total in (moments_of(x, 1), merge_all([moments_of(part, 1) for part in x.split(143)])):
        assert relative_error(total.m2, m2_of(stored)) < 1e-13


@pytest.mark.parametrize("value", [0.1, -3.3, 1e30, 1e-40, 16777217.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_has_no_variance_at_all(value: float, dtype: torch.dtype) -> None:
    x = torch.full((1001, 2), value, dtype=dtype)
    total = merge(moments_of(x, 1), moments_of(x[:77], 1))
    assert total.m2.tolist() == [0, 0]
    assert total.mean.tolist() == x[0].double().tolist()


def test_a_constant_of_any_number_of_rows_has_no_variance_at_all() -> None:
    for rows in range(1, 200):
        moments = moments_of(torch.tensor([[0.1, 1e308]], dtype=torch.float64).expand(rows, 2), 1)
        assert moments.mean.tolist() == [0.1, 1e308]
        assert moments.m2.tolist() == [0, 0]


def test_magnitudes_of_1e30_and_subnormals_are_as_any_other() -> None:
    for factor in (1e30, 1e-42):
        x = (random(999, 1) * factor).float()
        assert relative_error(moments_of(x, 1).m2, m2_of(x.double().reshape(-1).tolist())) < 1e-13


def test_blocks_are_merged_as_batches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = 1e6 + random(13, 5, 17), random(13, 5, 17, seed=1) > 0
    whole = moments_of(x, 1, mask=mask)
    monkeypatch.setattr("normcore.kernels.reference.BLOCK_ELEMENTS", 20)
    blocks = moments_of(x, 1, mask=mask)
    assert blocks.count.tolist() == whole.count.tolist()
    torch.testing.assert_close(blocks.m2, whole.m2, rtol=1e-14, atol=0)
    torch.testing.assert_close(blocks.mean, whole.mean, rtol=1e-16, atol=0)
    assert (blocks.min.tolist(), blocks.max.tolist()) == (whole.min.tolist(), whole.max.tolist())


@settings(deadline=None)
@given(st.lists(values, min_size=2, max_size=8), st.floats(min_value=0.01, max_value=100))
def test_scaling_multiplies_weights_alone(rows: list[float], factor: float) -> None:
    moments, scaled = column(rows), scale(column(rows), factor)
    torch.testing.assert_close(variance(scaled), variance(moments), rtol=1e-14, atol=0)
    assert words(scaled)[1] == words(moments)[1]
    assert scaled.count.item() == len(rows) * factor


def test_scaling_by_zero_gives_the_identity() -> None:
    assert words(scale(column([1, 2]), 0.0)) == words(Moments.empty(1))


def test_pooling_averages_means_and_adds_m2() -> None:
    pooled = pool(column([0, 2]), column([10, 14]))
    assert words(pooled) == [[4], [6.5], [10], [0], [14]]


def test_variance_divides_by_count_less_ddof_and_is_nan_without_enough() -> None:
    assert variance(column([1, 3])).item() == 1
    assert variance(column([1, 3]), ddof=1).item() == 2
    assert variance(column([1]), ddof=1).isnan()
    assert variance(Moments.empty(1)).isnan()


def test_moments_of_nothing_are_the_identity_whatever_is_given() -> None:
    junk = torch.tensor([5.0, 6.0], dtype=torch.float64)
    count = torch.tensor([0.0, 1.0], dtype=torch.float64)
    moments = Moments.of(count=count, mean=junk, mean_low=junk * 0, m2=junk, m2_low=junk * 0, min=junk, max=junk)
    assert words(moments) == [[0, 1], [0, 6], [0, 6], [torch.inf, 6], [-torch.inf, 6]]


@pytest.mark.parametrize(
    ("field", "change", "error"),
    [
        ("mean", lambda t: t.float(), InvalidParameter),
        ("m2", lambda t: t[:1], ShapeMismatch),
        ("count", lambda t: t.expand(3), ShapeMismatch),
        ("min", lambda t: t[None], ShapeMismatch),
    ],
)
def test_moments_are_checked_when_made(field: str, change: Callable[[Tensor], Tensor], error: type[Exception]) -> None:
    moments = moments_of(random(3, 2), 1)
    fields = {name: getattr(moments, name) for name in ROWS}
    with pytest.raises(error, match=field):
        Moments.of(**{**fields, field: change(fields[field])})


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("count", -1.0, r"count\[0\] is -1.0; expected finite and at least 0"),
        ("count", torch.nan, "count"),
        ("m2", -1.0, r"m2\[1\] is -1.0; expected at least 0"),
        ("m2", torch.inf, r"m2\[1\] is inf; expected finite"),
        ("mean", torch.nan, r"mean\[1\] is nan; expected finite"),
        ("mean", 100.0, r"mean\[1\] is 100.0; expected at most max"),
        ("mean", -100.0, r"expected at least min"),
        ("min", 100.0, r"expected at least min"),
        ("mean_low", 1.0, r"mean_low\[1\]"),
        ("m2_low", 1.0, r"m2_low\[1\]"),
    ],
)
def test_what_no_real_values_have_is_named(field: str, value: float, sentence: str) -> None:
    moments = moments_of(random(9, 2), 1)
    fields = {name: getattr(moments, name).clone() for name in ROWS}
    fields[field].reshape(-1)[-1] = value
    problem = violations(Moments.of(**fields))
    assert problem is not None
    assert re.search(sentence, problem)


@settings(deadline=None)
@given(batches, batches)
def test_moments_of_real_values_hold(a: list[float], b: list[float]) -> None:
    assert violations(merge(column(a), column(b))) is None


def test_merging_other_numbers_of_features_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"moments\[1\] has 3 features; expected 2"):
        merge(Moments.empty(2), Moments.empty(3))


def test_permutations_of_three_agree() -> None:
    parts = [column([0.1, 0.2]), column([0.3]), column([1e9, -7.7, 0.1])]
    assert len({str(words(merge(merge(a, b), c))) for a, b, c in permutations(parts)}) == 1
