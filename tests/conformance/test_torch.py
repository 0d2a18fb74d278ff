"""What torch.nn says of the same batches, through client and server."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import normstats

RTOL = 1e-6  # relative, float32


def batches_of(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, *shape, generator=generator) * 3 + 2 for size in sizes]


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, None])
@pytest.mark.parametrize("way", ["train", "update", "stream"])
@pytest.mark.parametrize(
    ("module", "shape"),
    [(torch.nn.BatchNorm1d, (5,)), (torch.nn.BatchNorm1d, (5, 7)), (torch.nn.BatchNorm2d, (5, 4, 3))],
)
def test_running_statistics_are_torchs(
    client: normstats.Client,
    name: str,
    module: Callable[..., torch.nn.BatchNorm1d],
    shape: tuple[int, ...],
    momentum: float | None,
    way: str,
) -> None:
    torchs = module(5, momentum=momentum)
    ours = client.create(name, normstats.BatchNorm(5, momentum=momentum))
    batches = batches_of(shape, (8, 3, 16, 2, 9, 8, 8, 31))
    for batch in batches:
        expected = torchs(batch)
        if way == "train":
            torch.testing.assert_close(ours.normalize(batch, mode="train"), expected, rtol=1e-5, atol=1e-5)
        elif way == "update":
            ours.update(batch)
    if way == "stream":
        with ours.stream() as stream:
            for batch in batches:
                stream.update(batch)
    stats = ours.stats()
    np.testing.assert_allclose(stats.mean, torchs.running_mean.numpy(), rtol=RTOL, atol=1e-7)
    np.testing.assert_allclose(stats.var, torchs.running_var.numpy(), rtol=RTOL)
    assert stats.num_batches == int(torchs.num_batches_tracked)
    torchs.eval()
    torch.testing.assert_close(ours.normalize(batches[0]), torchs(batches[0]), rtol=1e-5, atol=1e-5)


def test_training_goes_on_from_a_torch_module(client: normstats.Client, name: str) -> None:
    torchs = torch.nn.BatchNorm2d(3)
    first, second = batches_of((3, 4, 4), (8, 8))
    torchs(first)
    spec = normstats.BatchNorm(3, running_mean=torchs.running_mean, running_var=torchs.running_var)
    ours = client.create(name, spec)
    ours.update(second)
    torchs(second)
    np.testing.assert_allclose(ours.stats().mean, torchs.running_mean.numpy(), rtol=RTOL, atol=1e-7)
    np.testing.assert_allclose(ours.stats().var, torchs.running_var.numpy(), rtol=RTOL)


SAMPLES: dict[str, tuple[torch.nn.Module, Callable[[torch.nn.Module], normstats.Spec]]] = {
    "layer": (torch.nn.LayerNorm((6, 4)), lambda m: normstats.LayerNorm((6, 4), weight=m.weight, bias=m.bias)),
    "rms": (torch.nn.RMSNorm(4), lambda m: normstats.RMSNorm(4, weight=m.weight)),
    "group": (torch.nn.GroupNorm(2, 6), lambda m: normstats.GroupNorm(2, 6, weight=m.weight, bias=m.bias)),
    "instance": (
        torch.nn.InstanceNorm1d(6, affine=True),
        lambda m: normstats.InstanceNorm(6, weight=m.weight, bias=m.bias),
    ),
    "local response": (torch.nn.LocalResponseNorm(3), lambda m: normstats.LocalResponseNorm(3)),
    "local response of even size": (torch.nn.LocalResponseNorm(4), lambda m: normstats.LocalResponseNorm(4)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SAMPLES)
def test_normalizations_of_a_sample_are_torchs(client: normstats.Client, case: str, dtype: torch.dtype) -> None:
    module, spec_of = SAMPLES[case]
    generator = torch.Generator().manual_seed(8)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 1.0, 0.3, generator=generator)
    (x,) = batches_of((6, 4), (10,))
    x = x.to(dtype)
    expected = module.double()(x.double()).to(dtype)
    spec = spec_of(module)
    if case == "rms":  # torch's default eps is that of the input's type
        spec = normstats.RMSNorm(4, eps=torch.finfo(dtype).eps, weight=module.weight)
        expected = torch.nn.functional.rms_norm(
            x.double(), (4,), module.weight.double(), eps=torch.finfo(dtype).eps
        ).to(dtype)
    y = client.normalize(x, spec)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "ratio"), [(np.float32, 1e6), (np.float64, 1e8)])
@pytest.mark.parametrize("way", ["one update", "many updates", "stream", "raw"])
def test_variance_keeps_12_digits_at_a_large_mean(
    client: normstats.Client, name: str, dtype: type, ratio: float, way: str
) -> None:
    """Against exact arithmetic on the very values that are stored."""
    from fractions import Fraction

    x = (np.random.default_rng(9).normal(ratio, 1, (1000, 2))).astype(dtype)
    ours = client.create(name, normstats.Standardize(2))
    if way == "one update":
        ours.update(x)
    elif way == "many updates":
        for part in np.array_split(x, 60):
            ours.update(part)
    elif way == "stream":
        with ours.stream() as stream:
            for part in np.array_split(x, 333):
                stream.update(part)
    else:
        ours.normalize(x, mode="train")  # here the server takes the moments
    for feature in range(2):
        values = [Fraction(float(value)) for value in x[:, feature]]
        mean = sum(values) / len(values)
        exact = sum((value - mean) ** 2 for value in values) / len(values)
        assert abs(Fraction(float(ours.stats().var[feature])) / exact - 1) < Fraction(1, 10**12)
