"""The worker's moments against exact arithmetic, and what is no batch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import normstats
from normstats.moments import Moments, batches_of

RNG = np.random.default_rng(11)


def moments_of(x: Any, **options: Any) -> Moments:
    (moments,) = batches_of(x, normstats.Standardize(np.shape(x)[-1]), **options)
    return moments


@pytest.mark.parametrize(
    "x",
    [
        RNG.normal(1e6, 1, 5000).astype(np.float32),
        RNG.normal(1e8, 1, 5000),
        RNG.normal(1e12, 1, 5000),
        RNG.normal(0, 1e30, 5000).astype(np.float32),
        RNG.normal(0, 1e-30, 5000),
        np.append(RNG.normal(0, 1, 5000), -1e12),
    ],
    ids=["float32 1e6", "1e8", "1e12", "float32 1e30", "1e-30", "an outlier"],
)
def test_moments_are_those_of_the_stored_input(x: np.ndarray) -> None:
    values = [Fraction(float(value)) for value in x]
    mean = sum(values, Fraction()) / len(values)
    m2 = sum(((value - mean) ** 2 for value in values), Fraction())
    ours = moments_of(x[:, None])
    # m2 sums 5,000 squares in two levels: 2 * sqrt(5000) roundings of 2^-53 at the most, far fewer by chance.
    assert abs(Fraction(float(ours.m2[0])) - m2) <= m2 * Fraction(2e-14)
    spread = Fraction(float(np.sqrt(float(m2) / len(x))))
    assert abs(Fraction(float(ours.mean[0])) + Fraction(float(ours.mean_low[0])) - mean) <= spread * Fraction(1e-14)
    assert (ours.min[0], ours.max[0]) == (x.min(), x.max())


def test_a_constant_has_no_deviation_at_all() -> None:
    ours = moments_of(np.full((1000, 3), 0.1, np.float32))
    np.testing.assert_array_equal(ours.m2, 0)
    np.testing.assert_array_equal(ours.mean, np.float32(0.1))


@pytest.mark.parametrize("options", [{"weights": np.zeros(4)}, {"mask": np.zeros(4, bool)}], ids=["weights", "mask"])
def test_what_counts_for_nothing_is_an_empty_batch(options: dict[str, Any]) -> None:
    ours, empty = moments_of(RNG.normal(size=(4, 2)), **options), moments_of(np.zeros((0, 2)))
    for name in ("count", "mean", "m2", "min", "max"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(empty, name), err_msg=name)
    assert (empty.count, empty.min[0], empty.max[0]) == (0, np.inf, -np.inf)


@pytest.mark.parametrize(
    "x",
    [
        np.ones((2, 2)) * 1j,
        np.zeros((2, 2), "M8[s]"),
        [["a", "b"]],
        [[None, 1.0]],
        [[1.0, 2.0], [1.0]],
        torch.ones(2, 2, dtype=torch.complex64),
    ],
    ids=["complex", "dates", "text", "objects", "ragged", "complex of torch"],
)
def test_what_is_no_batch_of_numbers_is_refused(x: Any) -> None:
    with pytest.raises(normstats.InvalidArgument, match=r"^batch is ") as caught:
        batches_of(x, normstats.Standardize(2))
    assert caught.value.field == "batch"


def test_masks_and_lengths_may_be_tensors_too() -> None:
    x = RNG.normal(size=(3, 4, 2))
    by_mask = moments_of(x, mask=torch.arange(4) < torch.tensor([[1], [2], [4]]))
    by_lengths = moments_of(x, lengths=torch.tensor([1, 2, 4]))
    np.testing.assert_array_equal(by_mask.m2, by_lengths.m2)
    assert by_mask.count == 7
