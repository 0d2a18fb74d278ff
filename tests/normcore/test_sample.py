"""Normalizations by each sample's own statistics: parity with torch, and with gathered values where masked."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MaxAbsScaler, maxabs_scale
from torch import Tensor
from torch.nn import functional as F

from normcore.errors import InvalidParameter, ShapeMismatch, TooFewValues
from normcore.normalize.across import local_response_norm, lp_norm, mean_variance_norm
from normcore.normalize.group import adaptive_instance_norm, group_norm, instance_norm, instance_statistics
from normcore.normalize.row import layer_norm, rms_norm

CLOSE: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-13}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS = random(6, seed=3), random(6, seed=4)


@pytest.mark.parametrize("normalized_shape", [(5,), (4, 5), (6, 4, 5)])
def test_layer_and_rms_norm_are_torchs(normalized_shape: tuple[int, ...]) -> None:
    x, weight, bias = random(2, 6, 4, 5), random(*normalized_shape, seed=1), random(*normalized_shape, seed=2)
    y = layer_norm(x, normalized_shape, eps=1e-3, weight=weight, bias=bias)
    torch.testing.assert_close(y, F.layer_norm(x, normalized_shape, weight, bias, 1e-3), **CLOSE)
    for eps in (1e-3, None):
        y = rms_norm(x, normalized_shape, eps=eps, weight=weight)
        torch.testing.assert_close(y, F.rms_norm(x, list(normalized_shape), weight, eps), **CLOSE)


def test_a_normalized_shape_of_one_axis_may_be_a_number() -> None:
    x = random(3, 5)
    assert layer_norm(x, 5).equal(layer_norm(x, (5,)))


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 4, 3)])
@pytest.mark.parametrize("num_groups", [1, 2, 6])
def test_group_norm_is_torchs(shape: tuple[int, ...], num_groups: int) -> None:
    x = random(*shape)
    y = group_norm(x, num_groups, eps=1e-3, weight=WEIGHT, bias=BIAS)
    # torch refuses one value a group in no case here; a group of one value is 0 by definition.
    torch.testing.assert_close(y, F.group_norm(x, num_groups, WEIGHT, BIAS, 1e-3), **CLOSE)


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 4, 3), (2, 6, 2, 3, 2)])
def test_instance_norm_is_torchs(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    y = instance_norm(x, eps=1e-3, weight=WEIGHT, bias=BIAS)
    torch.testing.assert_close(y, F.instance_norm(x, weight=WEIGHT, bias=BIAS, eps=1e-3), **CLOSE)


@pytest.mark.parametrize("samples", [2, 1, None])
def test_adaptive_instance_norm_takes_the_styles_mean_and_deviation(samples: int | None) -> None:
    x, style = random(2, 6, 5), 3 + 7 * random(samples or 1, 6, 11, seed=1)
    mean, std = instance_statistics(style, eps=1e-9)
    torch.testing.assert_close(mean, style.mean(2), **CLOSE)
    torch.testing.assert_close(std, (style.var(2, correction=0) + 1e-9).sqrt(), **CLOSE)
    if samples is None:
        mean, std = mean[0], std[0]
    y = adaptive_instance_norm(x, mean, std, eps=1e-9)
    torch.testing.assert_close(y.mean(2), mean.expand(2, 6), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(y.std(2, correction=0), std.expand(2, 6), rtol=1e-8, atol=1e-8)


def test_a_style_that_does_not_fit_is_refused() -> None:
    x = random(2, 6, 5)
    for shape in ((3, 6), (2, 5), (5,), (2, 6, 1), ()):
        with pytest.raises(ShapeMismatch, match="style_std"):
            adaptive_instance_norm(x, torch.ones(2, 6), torch.ones(shape))
    with pytest.raises(TooFewValues, match="style has a count of 0 in feature 1"):
        instance_statistics(x, mask=torch.arange(6).reshape(1, 6, 1) != 1)


@pytest.mark.parametrize("axes", [(0, 2, 3), (1,), (2, 3), (0, 1, 2, 3), (-1, 0)])
def test_mean_variance_norm_is_onnxs(axes: tuple[int, ...]) -> None:
    x = random(2, 6, 4, 3)
    mean, std = x.mean(axes, keepdim=True), x.std(axes, correction=0, keepdim=True)
    torch.testing.assert_close(mean_variance_norm(x, axes), (x - mean) / (std + 1e-9), **CLOSE)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.5, inf])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lp_norm_is_torchs_normalize(p: float, axis: int) -> None:
    x = random(2, 6, 4, 3)
    torch.testing.assert_close(lp_norm(x, p, axis), F.normalize(x, p, axis), **CLOSE)
    assert lp_norm(x, p, axis, eps=1e3).abs().max() < 1e-2


def test_lp_norm_neither_overflows_nor_divides_by_zero() -> None:
    for factor in (1e200, 1e300, 1e-200):
        y = lp_norm(torch.tensor([[3 * factor, -4 * factor]], dtype=torch.float64), eps=0.0)
        torch.testing.assert_close(y, torch.tensor([[0.6, -0.8]], dtype=torch.float64), rtol=1e-15, atol=0)
    for eps in (0.0, 1e-12):
        assert lp_norm(torch.zeros(2, 3), eps=eps).equal(torch.zeros(2, 3))


def test_lp_norm_along_rows_is_sklearns_max_abs_scaler() -> None:
    x = random(9, 4)
    x[:, 2] = 0
    np.testing.assert_allclose(lp_norm(x, inf, 0).numpy(), maxabs_scale(x.numpy()), rtol=1e-15)
    np.testing.assert_allclose(lp_norm(x, inf, 0).numpy(), MaxAbsScaler().fit_transform(x.numpy()), rtol=1e-15)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 50])
@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 4, 3)])
def test_local_response_norm_is_torchs(size: int, shape: tuple[int, ...]) -> None:
    x = random(*shape) * 10
    y = local_response_norm(x, size, alpha=0.1, beta=0.6, k=2.0)
    torch.testing.assert_close(y, F.local_response_norm(x, size, 0.1, 0.6, 2.0), **CLOSE)


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"alpha": -1.0}, {"k": 0.0}, {"beta": inf}, {"k": inf}, {"alpha": float("nan")}], ids=str
)
def test_local_response_norms_constants_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(InvalidParameter):
        local_response_norm(random(2, 6), **{"size": 3, **change})  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="p is 0"):
        lp_norm(random(2, 6), 0)


def test_a_mask_leaves_each_rows_real_values() -> None:
    x, mask = random(5, 6), random(5, 6, seed=1) > 0
    mask[3] = False
    spoilt = torch.where(mask, x, torch.nan)
    for norm in (
        lambda t, m: layer_norm(t, t.shape[-1], mask=m),
        lambda t, m: rms_norm(t, t.shape[-1], mask=m),
        lambda t, m: lp_norm(t, 2.0, 1, mask=m),
        lambda t, m: mean_variance_norm(t, (1,), mask=m),
        lambda t, m: group_norm(t, 1, mask=m),
    ):
        y = norm(spoilt, mask)
        for row in (0, 1, 2, 4):
            expected = norm(x[row, mask[row]][None], None)[0]
            torch.testing.assert_close(y[row, mask[row]], expected, **CLOSE)
        assert y[~mask].isnan().all()
        assert norm(x, mask)[3].equal(x[3])


def test_masked_channels_of_samples_are_normalized_by_their_real_positions() -> None:
    x, mask = random(4, 6, 9), torch.arange(9) < torch.tensor([[9], [5], [1], [0]])
    y = instance_norm(x, weight=WEIGHT, bias=BIAS, mask=mask[:, None])
    for sample, length in enumerate((9, 5)):
        expected = instance_norm(x[sample : sample + 1, :, :length], weight=WEIGHT, bias=BIAS)
        torch.testing.assert_close(y[sample : sample + 1, :, :length], expected, **CLOSE)
        assert y[sample, :, length:].equal(x[sample, :, length:])
    assert y[2, :, 0].equal(BIAS)
    assert y[3].equal(x[3])
    neighbours = local_response_norm(x, 3, mask=mask[:, None])
    assert neighbours[1, :, :5].equal(local_response_norm(x[1:2, :, :5], 3)[0])
    assert neighbours[1, :, 5:].equal(x[1, :, 5:])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = random(9, 6, 5), random(9, 6, 5, seed=1) > 0
    style = random(9, 6, seed=2)

    def outputs() -> list[Tensor]:
        return [
            layer_norm(x, 5, weight=WEIGHT[:5], mask=mask),
            group_norm(x, 2, weight=WEIGHT, bias=BIAS, mask=mask),
            adaptive_instance_norm(x, style, style.exp(), mask=mask),
            lp_norm(x, mask=mask),
            local_response_norm(x, 3, mask=mask),
            *instance_statistics(x[:, :, :]),
        ]

    whole = outputs()
    monkeypatch.setattr("normcore.kernels.reference.BLOCK_ELEMENTS", 40)
    for one, other in zip(whole, outputs(), strict=True):
        assert one.equal(other)
