"""Values that are hard to sum, in a shape and a type: stored once, then taken as exact.

A case is made in float64 and rounded to the type; what a type cannot hold is scaled to what it can.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int32]

# Near the largest whose squares float64 still sums, or whose type still holds it; subnormals, as few bits as they have.
HUGE = {torch.float16: 1e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e150}
TINY = {torch.float16: 3e-6, torch.bfloat16: 3e-39, torch.float32: 1e-40, torch.float64: 1e-310}
OUTLIER = {torch.float16: 6e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e30}
# Mean / deviation, as far as the type still tells values apart.
FAR = {
    torch.float16: [1e2],
    torch.bfloat16: [1e1],
    torch.float32: [1e3, 1e6, 1e8],
    torch.float64: [1e3, 1e6, 1e8, 1e12, 1e15],
}

Make = Callable[[torch.dtype, tuple[int, ...]], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def whole(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Integers over a good part of the type."""
    low, high = (0, 256) if dtype == torch.uint8 else (-(10**9), 10**9)
    return torch.randint(low, high, shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def far(dtype: torch.dtype, shape: tuple[int, ...], ratio: float) -> Tensor:
    """A deviation of 3 about a mean of 3 * ratio."""
    return (3 * (normal(*shape) + ratio)).to(dtype)


def _sorted(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """In memory's order, from far below to far above."""
    return normal(*shape).flatten().sort().values.reshape(shape).to(dtype)


def _alternating(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Signs change along every axis, so sums all but cancel."""
    places = sum(torch.arange(size).reshape(-1, *[1] * (len(shape) - axis - 1)) for axis, size in enumerate(shape))
    return ((1 - 2 * (places % 2)) * (1 + normal(*shape).abs() / 8)).to(dtype)


def _few_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Odd whole numbers, whose squares are all 1 modulo 8."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (2 * torch.randint(-60, 60, shape, generator=generator) + 1).to(dtype)


def _outlier(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The first of every channel, or row, is far from all others."""
    x = normal(*shape)
    x[(0, slice(None), 0) if len(shape) == 3 else (slice(None), 0)] = OUTLIER[dtype]
    return x.to(dtype)


CASES: dict[str, Make] = {
    "random": lambda dtype, shape: (3 * normal(*shape) + 1).to(dtype),
    "sorted": _sorted,
    "alternating": _alternating,
    "few bits": _few_bits,
    "outlier first": _outlier,
    "huge": lambda dtype, shape: (HUGE[dtype] * normal(*shape).clamp(-5, 5)).to(dtype),
    "tiny": lambda dtype, shape: (TINY[dtype] * normal(*shape)).to(dtype),
}
