"""Which values count, and how much: masks, weights, values that are not finite, dtypes, shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normcore.errors import InvalidParameter, NonFinite, ShapeMismatch
from normcore.moments import ROWS, Moments, moments_of, variance, violations


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(a: Moments, b: Moments) -> None:
    for name in ROWS:
        if name != "m2_low" and name != "mean_low":
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("channel_axis", [0, 1, 2, -1])
def test_statistics_are_over_all_axes_but_the_channel(channel_axis: int) -> None:
    x = random(4, 5, 6)
    rows = x.movedim(channel_axis, -1).reshape(-1, x.shape[channel_axis])
    moments = moments_of(x, channel_axis)
    assert moments.count.shape == ()
    assert moments.count.item() == rows.shape[0]
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(variance(moments), rows.var(0, correction=0), rtol=1e-14, atol=0)
    assert moments.min.tolist() == rows.amin(0).tolist()
    assert moments.max.tolist() == rows.amax(0).tolist()


def test_strided_input_is_as_good_as_contiguous() -> None:
    x = random(4, 5, 6, 7).to(memory_format=torch.channels_last)
    assert_same(moments_of(x, 1), moments_of(x.contiguous(), 1))


def test_one_axis_is_rows_of_a_single_feature() -> None:
    x, weights = random(9), torch.arange(9)
    for axis in (0, 1, -1):
        assert_same(moments_of(x, axis, num_features=1), moments_of(x[:, None], 1))
        assert_same(moments_of(x, axis, num_features=1, weights=weights), moments_of(x[:, None], 1, weights=weights))
        assert_same(moments_of(x, axis, num_features=1, mask=x > 0), moments_of(x[x > 0][:, None], 1))


def test_one_axis_of_several_features_is_one_row() -> None:
    assert moments_of(random(9), -1, num_features=9).count.item() == 1


def test_a_mask_counts_the_values_it_leaves() -> None:
    x, mask = random(6, 3, 5), random(6, 3, 5, seed=1) > 0
    moments = moments_of(x, 1, mask=mask)
    for channel in range(3):
        kept = x[:, channel][mask[:, channel]]
        assert moments.count[channel] == kept.numel()
        torch.testing.assert_close(moments.mean[channel], kept.mean(), rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(variance(moments)[channel], kept.var(correction=0), rtol=1e-14, atol=0)
        assert moments.min[channel] == kept.min()
        assert moments.max[channel] == kept.max()


def test_a_mask_alike_for_all_channels_has_one_count() -> None:
    x, mask = random(6, 3, 5), random(6, 1, 5, seed=1) > 0
    assert moments_of(x, 1, mask=mask).count.shape == ()
    assert_same(moments_of(x, 1, mask=mask), moments_of(x.movedim(1, 2)[mask[:, 0]], 1))


def test_masked_values_may_be_anything() -> None:
    x, mask = random(6, 3), random(6, 1, seed=1) > 0
    spoilt = torch.where(mask, x, torch.tensor([torch.nan, torch.inf, 1e308]))
    assert_same(moments_of(spoilt, 1, mask=mask), moments_of(x, 1, mask=mask))


def test_integer_weights_are_repetitions() -> None:
    x, weights = random(6, 3, 2), torch.tensor([1, 2, 0, 3, 1, 5])
    assert_same(moments_of(x, 1, weights=weights), moments_of(x.repeat_interleave(weights, 0), 1))
    assert_same(moments_of(x, 2, weights=weights), moments_of(x.repeat_interleave(weights, 0), 2))


def test_weights_and_mask_go_together() -> None:
    x, mask = random(6, 3, 2), random(6, 3, 2, seed=1) > 0
    weights = torch.tensor([1, 2, 0, 3, 1, 5])
    repeated = [t.repeat_interleave(weights, 0) for t in (x, mask)]
    assert_same(moments_of(x, 1, mask=mask, weights=weights), moments_of(repeated[0], 1, mask=repeated[1]))


def test_a_sample_of_weight_zero_may_be_anything() -> None:
    x = torch.tensor([[1.0], [torch.nan], [3.0]])
    assert_same(moments_of(x, 1, weights=torch.tensor([1, 0, 1])), moments_of(x[::2], 1))


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_weights_that_weigh_less_than_nothing_are_refused(bad: float) -> None:
    with pytest.raises(InvalidParameter, match=rf"weights\[1\] is {bad}"):
        moments_of(random(3, 2), 1, weights=torch.tensor([1.0, bad, 1.0]))


def test_weights_are_one_per_sample() -> None:
    with pytest.raises(ShapeMismatch, match=r"weights.shape is \[2\]; expected \[3\]"):
        moments_of(random(3, 2), 1, weights=torch.ones(2))
    with pytest.raises(ShapeMismatch, match="channel axis"):
        moments_of(random(3, 2), 0, weights=torch.ones(3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_rejected_omitted_or_propagated(bad: float) -> None:
    x = random(4, 3, 2)
    x[2, 1, 0] = bad
    x[3, 1, 1] = torch.nan
    with pytest.raises(NonFinite) as caught:
        moments_of(x, 1)
    assert (caught.value.argument, caught.value.count, caught.value.first_index) == ("x", 2, (2, 1, 0))
    omitted = moments_of(x, 1, nan_policy="omit")
    assert_same(omitted, moments_of(x, 1, mask=torch.isfinite(x)))
    assert omitted.count.tolist() == [8, 6, 8]
    spread = moments_of(x, 1, nan_policy="propagate")
    assert torch.isfinite(spread.m2).tolist() == [True, False, True]
    assert violations(omitted) is None
    assert violations(spread) is not None


def test_a_feature_of_which_all_is_omitted_has_seen_nothing() -> None:
    x = torch.tensor([[1.0, torch.nan], [2.0, torch.nan]])
    moments = moments_of(x, 1, nan_policy="omit")
    assert moments.count.tolist() == [2, 0]
    assert moments.mean.tolist() == [1.5, 0]


def test_magnitudes_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="squares exceed float64"):
        moments_of(torch.tensor([[1e200], [-1e200]], dtype=torch.float64), 1)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    ],
    ids=str,
)
def test_every_dtype_counts_as_its_float64_values(dtype: torch.dtype) -> None:
    x = (random(50, 3).abs() * 30).to(dtype)
    assert_same(moments_of(x, 1), moments_of(x.double(), 1))


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (0, 3, 0)])
def test_an_empty_batch_is_the_identity(shape: tuple[int, ...]) -> None:
    assert_same(moments_of(torch.empty(shape), 1), Moments.empty(3))


def test_one_value_is_its_own_mean() -> None:
    moments = moments_of(torch.tensor([[0.1]]), 1)
    assert (moments.count.item(), moments.m2.item()) == (1, 0)
    assert moments.mean.item() == moments.min.item() == torch.tensor(0.1).item()


def test_the_number_of_features_is_checked() -> None:
    with pytest.raises(ShapeMismatch, match=r"^x.shape\[1\] is 12; expected num_features = 17$") as caught:
        moments_of(random(3, 12), 1, num_features=17)
    assert caught.value.argument == "x"
    with pytest.raises(ShapeMismatch, match="channel_axis is 1"):
        moments_of(random(3), 1)
