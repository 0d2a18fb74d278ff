"""How work is cut, and what kernels compute in."""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normcore.kernels.base import output_dtype
from normcore.kernels.cpu.compiled import apply, lanes, merge, rows, sums

Shape3 = tuple[int, int, int]
Shape2 = tuple[int, int]

# Bytes of a part that one thread takes at a time, and of what stays in one core's cache. From STREAM bytes on, output
# goes past the caches: writing a line then costs no reading of it. Smaller outputs are left in the caches for whoever
# reads them next.
PART, CACHE, STREAM = 1 << 20, 1 << 19, 1 << 24
# Elements up to which a call is not worth sharing out.
SMALL = 1 << 17

_WORK, _SCRATCH = max(sums.WORK, merge.WORK, rows.WORK), apply.AT_ONCE


def streams(target: int, itemsize: int, size: int) -> bool:
    """Whether an output of so many values at an address goes past the caches, a line at a time.

    One that lies behind a reply's header may lie between its values' multiples, and so at no line's beginning.
    """
    return size * itemsize >= STREAM and target % itemsize == 0


class Workspace(threading.local):
    """Memory that kernels compute in, each thread its own, kept: addresses of its parts."""

    def __init__(self) -> None:
        self._kept = torch.empty(0, dtype=torch.float64)
        self.work = self.table = self.scratch = self.partial = 0
        self.reserve(0)

    def reserve(self, partial: int) -> None:
        """Have room for so many float64 in `partial`."""
        size = _WORK + apply.TABLE + _SCRATCH + partial
        if self._kept.numel() < size:
            self._kept = torch.empty(size, dtype=torch.float64)
            self.work = self._kept.data_ptr()
            self.table = self.work + 8 * _WORK
            self.scratch = self.table + 8 * apply.TABLE
            self.partial = self.scratch + 8 * _SCRATCH


workspace = Workspace()


class Blocks(NamedTuple):
    """How x (A, C, B) is cut: rows of A, values of B, channels in a block; blocks of a channel; blocks in all."""

    rows: int
    span: int
    tile: int
    of_channel: int
    total: int


@lru_cache(maxsize=4096)
def blocks(before: int, channels: int, after: int) -> Blocks:
    """Blocks that `moments` sums up one by one: of some 4,096 values of each channel."""
    if after < sums.LONG_RUN:
        height, span = sums.BLOCK if after == 1 else max(sums.AT_ONCE, 8 * sums.BLOCK // after), after
        tile = max(1, sums.TILE // after)
        tile -= tile % lanes.LANES if tile > lanes.LANES else 0
    elif after <= sums.BLOCK:
        height, span = 1, after  # one after another in memory
        tile = max(1, min(sums.TILE, (PART >> 2) // (height * span)))
    else:
        span = -(-after // -(-after // sums.BLOCK))  # as even as they can be
        height, span, tile = 1, -(-span // (2 * lanes.LANES)) * 2 * lanes.LANES, 1
    height, tile = min(height, before), min(tile, channels)
    of_channel = -(-before // height) * -(-after // span)
    return Blocks(height, span, tile, of_channel, of_channel * -(-channels // tile))


@lru_cache(maxsize=4096)
def fused_tile(before: int, channels: int, after: int, itemsize: int) -> int:
    """How many channels a core's cache holds; 0 where that is less than some lines of each row."""
    tile = min(channels, sums.TILE // after if after < sums.LONG_RUN else sums.TILE)
    tile = min(tile, CACHE // (before * after * itemsize))
    return tile if tile == channels or tile * after * itemsize >= 256 else 0


def grain(size_bytes: int) -> int:
    """How many things of a size are a part."""
    return max(1, PART // size_bytes)


class Numbers:
    """Numbers at an address where a kernel reads them, which is good while this is held."""

    def __init__(self, kind: Any, values: tuple[float, ...]) -> None:
        self._array = (kind * len(values))(*values)
        self.address = ctypes.addressof(self._array)


@lru_cache(maxsize=4096)
def numbers(*values: int) -> Numbers:
    """Whole numbers; kept, as calls of one shape need the same ones."""
    return Numbers(ctypes.c_int64, values)


@lru_cache(maxsize=256)
def reals(*values: float) -> Numbers:
    """Float64 numbers, kept likewise."""
    return Numbers(ctypes.c_double, values)


def strides(mask: Tensor) -> tuple[int, ...]:
    """A mask's steps along each axis, 0 where it is the same all along."""
    return tuple(0 if size == 1 else step for size, step in zip(mask.shape, mask.stride(), strict=True))


def parameters(weight: Tensor | None, bias: Tensor | None) -> tuple[int, int, torch.dtype]:
    """Addresses of dense parameters of one type, 0 for none, and the type."""
    if weight is not None:
        return weight.data_ptr(), 0 if bias is None else bias.data_ptr(), weight.dtype
    return (0, 0, torch.float64) if bias is None else (0, bias.data_ptr(), bias.dtype)


def output(x: Tensor) -> Tensor:
    """A tensor like x, of the output's type."""
    return torch.empty_like(x) if x.is_floating_point() else torch.empty_like(x, dtype=output_dtype(x))
