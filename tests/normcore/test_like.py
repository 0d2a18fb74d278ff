"""Normalizations made ready for tensors of one shape and dtype: the same, to the bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import normcore
from normcore import Launch

pytest.importorskip("numba", reason="numba is not installed")

GENERATOR = torch.Generator().manual_seed(7)
# The first are small, the next shared out, the last go past the caches.
SHAPES = [(1, 64), (3, 1024), (5, 7, 96), (256, 1024), (1100, 4096)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32]


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=GENERATOR, dtype=torch.float64) * 3 + 100
    return x.to(dtype)


def run(launch: Launch, x: Tensor, like: Tensor) -> Tensor:
    """At whatever place behind a header."""
    memory = np.zeros(like.nbytes + 3, np.uint8)
    place = memory.__array_interface__["data"][0] + 3
    launch(x.data_ptr(), place)
    return torch.frombuffer(memory[3:].tobytes(), dtype=like.dtype).reshape(like.shape)


def same(made: Launch | None, by: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert made is not None
    gc.collect()  # what it goes by is its own to keep
    for _ in range(2):
        x = values(*shape, dtype=dtype)
        y = by(x)
        assert run(made, x, y).view(torch.uint8).equal(y.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scale, shift = values(shape[-1]), values(shape[-1])
    like = torch.empty(shape, dtype=dtype)
    made = normcore.layer_norm_like(like, shape[-1:], eps=1e-3, weight=scale.clone(), bias=shift.clone())
    same(made, lambda x: normcore.layer_norm(x, shape[-1:], eps=1e-3, weight=scale, bias=shift), shape, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape: tuple[int, ...]) -> None:
    scale = values(shape[-1], dtype=torch.float64)
    made = normcore.rms_norm_like(torch.empty(shape), shape[-1], weight=scale.clone())
    same(made, lambda x: normcore.rms_norm(x, shape[-1], weight=scale), shape, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [(shape, -1) for shape in SHAPES] + [((5, 7, 96), 1), ((9, 3, 64, 80), 1)])
def test_standardize(shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    channels = shape[axis]
    mean, var = values(channels, dtype=torch.float64), values(channels, dtype=torch.float64).abs()
    by: dict[str, Any] = {"eps": 1e-5, "clip": 2.0, "channel_axis": axis}
    scale, shift = values(channels), values(channels)
    like = torch.empty(shape, dtype=dtype)
    made = normcore.standardize_like(like, mean.clone(), var.clone(), weight=scale.clone(), bias=shift.clone(), **by)
    same(made, lambda x: normcore.standardize(x, mean, var, weight=scale, bias=shift, **by), shape, dtype)


def test_what_would_keep_much_or_gains_nothing_is_not_made_ready() -> None:
    many = torch.ones(1 << 18, dtype=torch.float64)
    assert normcore.layer_norm_like(torch.empty(4, 1 << 16), 1 << 16) is None
    assert normcore.standardize_like(torch.empty(2, 1 << 18), many, many, eps=0.0, channel_axis=1) is None


def test_what_does_not_fit_is_refused_when_it_is_made_ready() -> None:
    with pytest.raises(normcore.ShapeMismatch):
        normcore.layer_norm_like(torch.empty(4, 8), 9)
    with pytest.raises(normcore.ShapeMismatch):
        normcore.layer_norm_like(torch.empty(4, 8), 8, weight=torch.ones(9))
    with pytest.raises(normcore.InvalidParameter):
        normcore.rms_norm_like(torch.empty(4, 8), 8, eps=-1.0)
    with pytest.raises(normcore.InvalidParameter):
        normcore.standardize_like(torch.empty(4, 8), torch.zeros(8), torch.ones(8), eps=0.0, clip=0.0, channel_axis=1)
