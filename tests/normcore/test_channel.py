"""Batch norm and its kin: parity with torch and scikit-learn, ghosts, renormalization, inverses."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import Tensor
from torch.nn import functional as F

from normcore.errors import InvalidParameter, NoInverse, NonFinite, ShapeMismatch
from normcore.moments import moments_of, variance
from normcore.normalize.channel import batch_norm, batch_renorm, min_max, standardize, unmin_max, unstandardize

CLOSE: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-13}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MEAN, VAR, WEIGHT, BIAS = (random(3, seed=1), random(3, seed=2).square(), random(3, seed=3), random(3, seed=4))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 2)])
def test_standardize_is_torch_batch_norm_in_eval(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    y = standardize(x, MEAN, VAR, eps=1e-5, weight=WEIGHT, bias=BIAS, channel_axis=1)
    torch.testing.assert_close(y, F.batch_norm(x, MEAN, VAR, WEIGHT, BIAS, eps=1e-5), **CLOSE)


def test_standardize_is_sklearns_standard_scaler() -> None:
    x = random(50, 3) * 7 + 3
    x[:, 1] = 0.1
    moments = moments_of(x, -1)
    y = standardize(x, moments.mean, variance(moments), eps=0.0, channel_axis=-1)
    np.testing.assert_allclose(y.numpy(), StandardScaler().fit_transform(x.numpy()), rtol=1e-13, atol=1e-14)
    assert y[:, 1].abs().max() == 0


@pytest.mark.parametrize("feature_range", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("clip", [False, True])
def test_min_max_is_sklearns_min_max_scaler(feature_range: tuple[float, float], clip: bool) -> None:
    x, later = random(50, 3) * 7 + 3, random(20, 3, seed=1) * 20
    x[:, 1] = 0.1
    moments = moments_of(x, -1)
    scaler = MinMaxScaler(feature_range, clip=clip).fit(x.numpy())
    for batch in (x, later):
        y = min_max(batch, moments.min, moments.max, feature_range=feature_range, clip=clip, channel_axis=-1)
        np.testing.assert_allclose(y.numpy(), scaler.transform(batch.numpy()), rtol=1e-13, atol=1e-13)


def test_a_clip_bounds_the_output() -> None:
    y = standardize(random(99, 3) * 50, MEAN, VAR, eps=1e-8, clip=2.5, channel_axis=1)
    assert (y.min().item(), y.max().item()) == (-2.5, 2.5)
    with pytest.raises(InvalidParameter, match="clip"):
        standardize(random(9, 3), MEAN, VAR, eps=1e-8, clip=0.0, channel_axis=1)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 2)])
def test_batch_norm_is_torchs_in_training(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    y, [moments] = batch_norm(x, eps=1e-5, weight=WEIGHT, bias=BIAS)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, WEIGHT, BIAS, training=True, eps=1e-5), **CLOSE)
    torch.testing.assert_close(moments.mean, moments_of(x, 1).mean, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_ghost_batches_are_batches_of_their_own(size: int) -> None:
    x, mask = random(7, 3, 4), random(7, 1, 4, seed=1) > -1
    y, ghosts = batch_norm(x, eps=1e-5, weight=WEIGHT, bias=BIAS, mask=mask, virtual_batch_size=size)
    parts = [
        batch_norm(chunk, eps=1e-5, weight=WEIGHT, bias=BIAS, mask=part)
        for chunk, part in zip(torch.split(x, size), torch.split(mask, size), strict=True)
    ]
    assert y.equal(torch.cat([part for part, _ in parts]))
    assert [ghost.mean.tolist() for ghost in ghosts] == [moments.mean.tolist() for _, [moments] in parts]


def test_ghost_batches_share_a_mask_that_is_alike_for_all_samples() -> None:
    x, mask = random(7, 3, 4), torch.tensor([[[True, True, False, True]]])
    y, _ = batch_norm(x, eps=1e-5, mask=mask, virtual_batch_size=3)
    assert y.equal(batch_norm(x, eps=1e-5, mask=mask.expand(7, 1, 4), virtual_batch_size=3)[0])


def test_batch_renorm_is_the_papers_formula() -> None:
    x, eps = random(9, 3) * torch.tensor([0.1, 1, 9]) + torch.tensor([0, 5, 0]), 1e-5
    y, moments = batch_renorm(x, MEAN, VAR, r_max=1.5, d_max=0.5, eps=eps, weight=WEIGHT, bias=BIAS)
    own, running = (x.var(0, correction=0) + eps).sqrt(), (VAR + eps).sqrt()
    r, d = (own / running).clamp(1 / 1.5, 1.5), ((x.mean(0) - MEAN) / running).clamp(-0.5, 0.5)
    torch.testing.assert_close(y, ((x - x.mean(0)) / own * r + d) * WEIGHT + BIAS, **CLOSE)
    assert moments.count == 9


def test_batch_renorm_without_bounds_is_by_running_statistics() -> None:
    x = random(9, 3)
    y, _ = batch_renorm(x, MEAN, VAR, r_max=1e9, d_max=1e9, eps=1e-5)
    torch.testing.assert_close(y, standardize(x, MEAN, VAR, eps=1e-5, channel_axis=1), **CLOSE)
    y, _ = batch_renorm(x, MEAN, VAR, r_max=1, d_max=0, eps=1e-5)
    torch.testing.assert_close(y, batch_norm(x, eps=1e-5)[0], **CLOSE)


@pytest.mark.parametrize(("r_max", "d_max"), [(0.5, 1), (1, -1), (float("nan"), 1)])
def test_batch_renorms_bounds_are_checked(r_max: float, d_max: float) -> None:
    with pytest.raises(InvalidParameter, match="r_max"):
        batch_renorm(random(9, 3), MEAN, VAR, r_max=r_max, d_max=d_max, eps=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_inverses_undo(eps: float) -> None:
    x, mask = random(9, 3, 4), random(9, 1, 4, seed=1) > 0
    var = VAR.clone()
    var[1] = 0
    given = {"eps": eps, "weight": WEIGHT, "bias": BIAS, "channel_axis": 1, "mask": mask}
    back = unstandardize(standardize(x, MEAN, var, **given), MEAN, var, **given)  # type: ignore[arg-type]
    torch.testing.assert_close(back, x, **CLOSE)
    assert back[~mask.expand(x.shape)].equal(x[~mask.expand(x.shape)])
    low, high = x.amin((0, 2)), x.amax((0, 2))
    y = min_max(x, low, high, feature_range=(-2, 5), channel_axis=1)
    torch.testing.assert_close(unmin_max(y, low, high, feature_range=(-2, 5), channel_axis=1), x, **CLOSE)


def test_a_weight_of_zero_cannot_be_undone() -> None:
    with pytest.raises(NoInverse, match=r"weight\[1\] is 0") as caught:
        unstandardize(random(9, 3), MEAN, VAR, eps=0.0, weight=torch.tensor([1.0, 0, 1]), channel_axis=1)
    assert caught.value.feature == 1


def test_masked_statistics_are_those_of_the_real_values_and_padding_stays() -> None:
    x, mask = random(9, 3, 4), random(9, 1, 4, seed=1) > 0
    spoilt = torch.where(mask, x, torch.nan)
    y, _ = batch_norm(spoilt, eps=1e-5, weight=WEIGHT, bias=BIAS, mask=mask)
    real = x.movedim(1, 2)[mask[:, 0]]
    expected, _ = batch_norm(real, eps=1e-5, weight=WEIGHT, bias=BIAS)
    torch.testing.assert_close(y.movedim(1, 2)[mask[:, 0]], expected, **CLOSE)
    assert y.movedim(1, 2)[~mask[:, 0]].isnan().all()


def test_a_channel_of_which_nothing_is_real_stays_as_it_is() -> None:
    x, mask = random(9, 3), torch.tensor([[True, False, True]])
    y, [moments] = batch_norm(x, eps=1e-5, mask=mask)
    assert y[:, 1].equal(x[:, 1])
    assert not y.isnan().any()
    assert moments.count.tolist() == [9, 0, 9]


def test_values_that_are_not_finite_spoil_their_channel_alone_or_are_refused() -> None:
    x = random(9, 3)
    x[4, 1] = torch.nan
    y, _ = batch_norm(x, eps=1e-5)
    assert y.isnan().any(0).tolist() == [False, True, False]
    y, _ = batch_norm(x, eps=1e-5, nan_policy="omit")
    assert y.isnan().sum() == 1
    with pytest.raises(NonFinite):
        batch_norm(x, eps=1e-5, nan_policy="reject")


@pytest.mark.parametrize("mean", [1e6, 1e15])
def test_a_large_mean_costs_nothing_that_the_input_holds(mean: float) -> None:
    x = mean + random(101, 2)
    centred = x - mean  # exact (Sterbenz), so torch's formula is good on it
    torch.testing.assert_close(batch_norm(x, eps=1e-5)[0], batch_norm(centred, eps=1e-5)[0], rtol=1e-12, atol=1e-12)


def test_one_axis_is_rows_of_a_single_feature() -> None:
    x, one = random(9), torch.ones(1, dtype=torch.float64)
    assert standardize(x, one, one, eps=0.0, channel_axis=-1).equal(x - 1)
    y, [moments] = batch_norm(x, eps=0.0, num_features=1, virtual_batch_size=20)
    torch.testing.assert_close(y, (x - x.mean()) / x.std(correction=0), **CLOSE)
    assert moments.count == 9


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.ones(4)}, "weight has 4 values; expected 3"),
        ({"bias": torch.ones(2)}, "bias has 2 values; expected 3"),
        ({"num_features": 4}, r"x.shape\[1\] is 3; expected num_features = 4"),
        ({"channel_axis": 2}, "channel_axis is 2"),
        ({"mask": torch.ones(9, 2, dtype=torch.bool)}, "mask"),
        ({"channel_axis": 0, "virtual_batch_size": 2}, "virtual_batch_size"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ShapeMismatch, match=sentence):
        batch_norm(random(9, 3), eps=1e-5, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("feature_range", [(1.0, 1.0), (2.0, 1.0), (0.0, inf)])
def test_a_feature_range_increases(feature_range: tuple[float, float]) -> None:
    with pytest.raises(InvalidParameter, match="feature_range"):
        min_max(random(9, 3), MEAN, MEAN + 1, feature_range=feature_range, channel_axis=1)
