"""Tensors as the kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.kernels.base import output_dtype

# Their values, differences between neighbours and extremes are exact in float32.
_NARROW = (torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.uint8, torch.int16, torch.bool)


def stored(x: Tensor) -> Tensor:
    """x; bool as the bytes it is stored in."""
    return x.detach().view(torch.uint8) if x.dtype == torch.bool else x.detach()


def mask_view(mask: Tensor | None, x: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask's bytes and its strides over x, 0 where it is broadcast."""
    if mask is None:
        return None, (0,) * x.dim()
    return mask.view(torch.uint8), mask.expand(x.shape).stride()


def output(x: Tensor, out: Tensor | None) -> Tensor:
    """Where results go."""
    return torch.empty(x.shape, dtype=output_dtype(x), device=x.device) if out is None else out


def exact_in_float32(x: Tensor) -> bool:
    """Whether float32 holds every element."""
    return x.dtype in _NARROW


def has_16_bits(x: Tensor) -> bool:
    """Whether elements are floats of 16 bits."""
    return x.dtype in (torch.float16, torch.bfloat16)
