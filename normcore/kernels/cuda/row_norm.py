"""Rows of (R, K) to mean 0 and deviation 1: in registers, along a row, or a row over several programs.

Layer, RMS, group, instance and adaptive instance norms are this one, by where element (r, k) takes its weight and bias.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore.kernels.base import COUNT, M2, MEAN, MEAN_LOW
from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.column_moments import channel_moments
from normcore.kernels.cuda.elements import jit, raised, rounded
from normcore.kernels.cuda.rows import deviations, finished, own, read_row, write_row
from normcore.kernels.cuda.tuning import Tile
from normcore.kernels.cuda.views import has_16_bits, mask_view, output, stored


def row_norm(
    x: Tensor,
    *,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Each row of x (R, K) normalized: see `normcore.kernels.reference.row_norm`."""
    y = output(x, out)
    if x.numel() == 0:
        return y
    rows, width = x.shape
    processors = tuning.multiprocessors(x.device)
    affine = _Affine(weight, bias, width)
    if (tile := tuning.row_tile(width, x.element_size())) is not None:
        _short_rows(x, eps, center, affine, mask, y, tile, tuning.PROGRAMS * processors)
    elif tuning.is_split(rows, width, processors):
        _split_rows(x, eps, center, affine, mask, y)
    else:
        _long_rows(x, eps, center, affine, mask, y)
    return y


class _Affine:
    """weight and bias (P, S), either or both, and what finds an element's own."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, width: int) -> None:
        self.tensors = tuple(None if t is None else t.contiguous() for t in (weight, bias))
        self.period, self.segments = next((t.shape for t in self.tensors if t is not None), (1, 1))
        # Both tensors, then period, segments and elements to a segment.
        self.arguments = (*self.tensors, self.period, self.segments, width // self.segments)

    def stay_in_registers(self, tile: Tile) -> bool:
        """Whether one row of them serves all rows of a program: 32 registers of a thread's 128 at most."""
        held = 2 * sum(t is not None for t in self.tensors) * (tile.columns // (32 * tile.warps))
        return self.period == 1 and held <= 32


def _short_rows(
    x: Tensor, eps: float, center: bool, affine: _Affine, mask: Tensor | None, y: Tensor, tile: Tile, most: int
) -> None:
    rows, width = x.shape
    valid, mask_strides = mask_view(mask, x)
    row_norm_short[(min(tuning.ceil_div(rows, tile.rows), most),)](
        stored(x),
        valid,
        y,
        *affine.arguments,
        rows,
        width,
        *mask_strides,
        eps,
        CENTER=center,
        # Sums of 16-bit elements err by less than their result can show, and of equal ones not at all.
        REFINE=not has_16_bits(x),
        DIVIDE=x.dtype == torch.float64,
        KEEP=(keep := affine.stay_in_registers(tile)),
        T_R=tile.rows,
        T_C=tile.columns,
        STAGES=tile.stages if keep else 1,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )


def _long_rows(x: Tensor, eps: float, center: bool, affine: _Affine, mask: Tensor | None, y: Tensor) -> None:
    rows, width = x.shape
    tile = tuning.long_row_tile(width)
    valid, mask_strides = mask_view(mask, x)
    row_norm_long[(rows,)](
        stored(x),
        valid,
        y,
        *affine.arguments,
        width,
        *mask_strides,
        eps,
        CENTER=center,
        DIVIDE=x.dtype == torch.float64,
        T_C=tile.columns,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )


def _split_rows(x: Tensor, eps: float, center: bool, affine: _Affine, mask: Tensor | None, y: Tensor) -> None:
    """Moments of each row as of a channel, then elements by them."""
    rows, width = x.shape
    values = channel_moments(x[None], None if mask is None else mask.expand(x.shape)[None]).values
    tile = tuning.long_row_tile(width)
    across = tuning.ceil_div(width, tile.columns)
    valid, mask_strides = mask_view(mask, x)
    row_map[(rows * across,)](
        stored(x),
        valid,
        y,
        *affine.arguments,
        *(values[which] for which in (COUNT, MEAN, MEAN_LOW, M2)),
        width,
        across,
        *mask_strides,
        eps,
        CENTER=center,
        DIVIDE=x.dtype == torch.float64,
        T_C=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )


@jit
def _rows(
    x: tl.tensor, group: tl.tensor, lane: tl.tensor, rows: tl.tensor, width: tl.tensor, T_R: tl.constexpr
) -> tl.tensor:
    """The elements of a group of T_R rows, 0 where there are none."""
    row = (tl.arange(0, T_R) + tl.full((T_R,), 0, tl.int64) + group * T_R)[:, None]
    return tl.load(x + row * width + lane, mask=(row < rows) & (lane < width), other=0)


@jit
def row_norm_short(
    x: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    period: tl.tensor,
    segments: tl.tensor,
    segment: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    mask_row: tl.tensor,
    mask_column: tl.tensor,
    eps: tl.float64,
    CENTER: tl.constexpr,
    REFINE: tl.constexpr,
    DIVIDE: tl.constexpr,
    KEEP: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """T_R rows at a time, each in registers between load and store, and every so many rows after them.

    While rows are computed the next are on their way: as stages of the loop, in shared memory, or, where weight and
    bias are read anew for each row and would take stages too, one tile ahead in registers.
    """
    lane = tl.arange(0, T_C)[None, :]
    within = lane < width
    place = lane // segment
    if KEEP:
        scale, shift = own(weight, bias, place, within)
    else:
        following = _rows(x, tl.program_id(0), lane, rows, width, T_R)
    for group in tl.range(tl.program_id(0), tl.cdiv(rows, T_R), tl.num_programs(0), num_stages=STAGES):
        row = (tl.arange(0, T_R) + tl.full((T_R,), 0, tl.int64) + group * T_R)[:, None]
        inside = (row < rows) & within
        if KEEP:
            element = _rows(x, group, lane, rows, width, T_R)
        else:
            element = following
            following = _rows(x, group + tl.num_programs(0), lane, rows, width, T_R)
        real = inside
        n = tl.zeros((T_R, 1), tl.float64) + width
        if mask is not None:
            real = inside & (tl.load(mask + row * mask_row + lane * mask_column, mask=inside, other=0) != 0)
            n = tl.maximum(tl.sum(real.to(tl.int32), 1, keep_dims=True), 1).to(tl.float64)
        value, variance = deviations(raised(element, tl.float64), real, n, CENTER, REFINE, mask is not None)
        if not KEEP:
            scale, shift = own(weight, bias, row % period * segments + place, inside)
        result = finished(value, variance + eps, scale, shift, weight is not None, bias is not None, DIVIDE)
        result = rounded(result, out.dtype.element_ty)
        if mask is not None:
            result = tl.where(real, result, element.to(out.dtype.element_ty))
        tl.store(out + row * width + lane, result, mask=inside)


@jit
def row_norm_long(
    x: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    period: tl.tensor,
    segments: tl.tensor,
    segment: tl.tensor,
    width: tl.tensor,
    mask_row: tl.tensor,
    mask_column: tl.tensor,
    eps: tl.float64,
    CENTER: tl.constexpr,
    DIVIDE: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """One row, read for its moments and again, last elements first, for the results: from the cache."""
    row = tl.program_id(0).to(tl.int64)
    first = row % period * segments
    if mask is not None:
        mask += row * mask_row
    mean, rest, variance = read_row(x + row * width, mask, mask_column, width, CENTER, T_C, STAGES)
    write_row(
        x + row * width,
        mask,
        mask_column,
        out + row * width,
        None if weight is None else weight + first,
        None if bias is None else bias + first,
        segment,
        width,
        mean,
        rest,
        variance + eps,
        DIVIDE,
        T_C,
        STAGES,
    )


@jit
def row_map(
    x: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    period: tl.tensor,
    segments: tl.tensor,
    segment: tl.tensor,
    counts: tl.tensor,
    means: tl.tensor,
    rests: tl.tensor,
    squares: tl.tensor,
    width: tl.tensor,
    across: tl.tensor,
    mask_row: tl.tensor,
    mask_column: tl.tensor,
    eps: tl.float64,
    CENTER: tl.constexpr,
    DIVIDE: tl.constexpr,
    T_C: tl.constexpr,
) -> None:
    """A tile of a row, by that row's moments."""
    program = tl.program_id(0).to(tl.int64)
    row = program // across
    column = tl.arange(0, T_C) + program % across * T_C
    inside = column < width
    place = row * width + column
    element = tl.load(x + place, mask=inside, other=0)
    count = tl.load(counts + row)
    mean, rest = tl.load(means + row), tl.load(rests + row)
    variance = tl.load(squares + row) / tl.where(count > 0, count, 1.0)
    value = raised(element, tl.float64)
    if CENTER:
        value = value - mean - rest
    else:
        variance += mean * mean
    scale, shift = own(weight, bias, row % period * segments + column // segment, inside)
    result = finished(value, variance + eps, scale, shift, weight is not None, bias is not None, DIVIDE)
    result = rounded(result, out.dtype.element_ty)
    if mask is not None:
        real = tl.load(mask + row * mask_row + column * mask_column, mask=inside, other=0) != 0
        result = tl.where(real, result, element.to(out.dtype.element_ty))
    tl.store(out + place, result, mask=inside)
