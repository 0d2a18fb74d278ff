"""What every normalization promises of dtypes, constants, extremes and emptiness, shown on all of them alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import normcore

Norm = Callable[[Tensor], Tensor]

# x is (N, 4, L) throughout.
STATISTICS: dict[str, Norm] = {
    "batch": lambda x: normcore.batch_norm(x, eps=1e-5)[0],
    "ghosts": lambda x: normcore.batch_norm(x, eps=1e-5, virtual_batch_size=3)[0],
    "layer": lambda x: normcore.layer_norm(x, x.shape[-1]),
    "group": lambda x: normcore.group_norm(x, 2),
    "instance": lambda x: normcore.instance_norm(x),
    "mean variance": lambda x: normcore.mean_variance_norm(x, (0, 2)),
}
OTHERS: dict[str, Norm] = {
    "standardize": lambda x: normcore.standardize(x, OFFSET, SPREAD, eps=1e-5, channel_axis=1),
    "unstandardize": lambda x: normcore.unstandardize(x, OFFSET, SPREAD, eps=1e-5, channel_axis=1),
    "min max": lambda x: normcore.min_max(x, OFFSET, OFFSET + SPREAD, channel_axis=1),
    "renorm": lambda x: normcore.batch_renorm(x, OFFSET, SPREAD, r_max=2, d_max=1, eps=1e-5)[0],
    "adaptive": lambda x: normcore.adaptive_instance_norm(x, OFFSET, SPREAD),
    "rms": lambda x: normcore.rms_norm(x, x.shape[-1], eps=1e-5),
    "lp": lambda x: normcore.lp_norm(x, 2.0, 1),
    "local response": lambda x: normcore.local_response_norm(x, 3),
}
OFFSET = torch.tensor([0.1, -0.7, 0.0, 2.0], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 0.3, 2.0, 5.0], dtype=torch.float64)
EVERY = {**STATISTICS, **OTHERS}
every_norm = pytest.mark.parametrize("norm", EVERY.values(), ids=EVERY)
by_statistics = pytest.mark.parametrize("norm", STATISTICS.values(), ids=STATISTICS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_output_is_of_the_inputs_type_and_within_one_ulp_of_the_correctly_rounded(
    norm: Norm, dtype: torch.dtype
) -> None:
    x = (random(7, 4, 50) * 5 + 3).to(dtype)
    y, exact = norm(x), norm(x.double())
    assert y.dtype == dtype
    rounded = exact.to(dtype)
    ulp = torch.nextafter(rounded.abs(), torch.tensor(torch.inf, dtype=dtype)) - rounded.abs()
    assert ((y - rounded).abs() <= ulp).all()


@every_norm
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool], ids=str)
def test_integers_are_normalized_as_float32(norm: Norm, dtype: torch.dtype) -> None:
    x = (random(7, 4, 5).abs() * 20).to(dtype)
    y = norm(x)
    assert y.dtype == torch.float32
    assert y.equal(norm(x.double()).float())


@by_statistics
@pytest.mark.parametrize("value", [0.1, -1e30, 1e-40, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_constants_give_exactly_zero(norm: Norm, value: float, dtype: torch.dtype) -> None:
    assert norm(torch.full((7, 4, 13), value, dtype=dtype)).abs().max() == 0


@pytest.mark.parametrize("value", [0.1, 1e30])
def test_constants_give_exactly_the_bias(value: float) -> None:
    x, bias = torch.full((7, 4, 13), value), OFFSET.float()
    expected = bias[:, None].expand(7, 4, 13)
    for eps in (0.0, 1e-5):
        assert normcore.batch_norm(x, eps=eps, bias=bias)[0].equal(expected)
        assert normcore.instance_norm(x, eps=eps, bias=bias).equal(expected)
        assert normcore.group_norm(x, 2, eps=eps, bias=bias).equal(expected)
        assert normcore.layer_norm(x, (4, 13), eps=eps, bias=bias[:, None].expand(4, 13)).equal(expected)


@by_statistics
@pytest.mark.parametrize("factor", [1e30, 1e15])
def test_large_magnitudes_neither_overflow_nor_give_zeros(norm: Norm, factor: float) -> None:
    x = random(7, 4, 50)
    x = (x * factor).float()
    torch.testing.assert_close(norm(x), norm(x.double() / factor).float(), rtol=1e-4, atol=1e-5)


@by_statistics
@pytest.mark.parametrize("ratio", [1e6, 1e8, 1e15])
def test_a_large_mean_costs_nothing_that_the_input_holds(norm: Norm, ratio: float) -> None:
    x = ratio + random(7, 4, 50)
    torch.testing.assert_close(norm(x), norm(x - ratio), rtol=1e-11, atol=1e-11)


@every_norm
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0), (0, 4, 0)])
def test_empty_tensors_give_empty_tensors(norm: Norm, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float16, torch.float32):
        y = norm(torch.empty(shape, dtype=dtype))
        assert (tuple(y.shape), y.dtype) == (shape, dtype)


@every_norm
def test_the_input_is_left_alone_and_strides_do_not_matter(norm: Norm) -> None:
    x = random(7, 5, 4).transpose(1, 2).requires_grad_()
    before = x.detach().clone()
    y = norm(x)
    assert x.equal(before)
    assert not y.requires_grad
    torch.testing.assert_close(y, norm(before.contiguous()), rtol=1e-14, atol=1e-14)


@every_norm
def test_one_value_a_channel_gives_no_nan(norm: Norm) -> None:
    assert torch.isfinite(norm(random(1, 4, 1))).all()
