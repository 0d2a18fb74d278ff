"""Rows of (R, K) by their p-norm: in registers, or along a row that is longer."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.elements import INF, jit, nonzero, raised, rounded
from normcore.kernels.cuda.views import mask_view, output, stored

# How magnitudes add up.
_GENERAL, _ONE, _TWO, _LARGEST = range(4)


def power_norm(x: Tensor, p: float, eps: float, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x / max(norm, eps) along each row of x (R, K): see `normcore.kernels.reference.power_norm`."""
    y = output(x, out)
    if x.numel() == 0:
        return y
    rows, width = x.shape
    tile = tuning.row_tile(width, x.element_size())
    whole = tile is not None
    tile = tile or tuning.long_row_tile(width)
    valid, mask_strides = mask_view(mask, x)
    groups = tuning.ceil_div(rows, tile.rows)
    power_rows[(min(groups, tuning.PROGRAMS * tuning.multiprocessors(x.device)),)](
        stored(x),
        valid,
        y,
        rows,
        width,
        *mask_strides,
        p,
        1 / p,
        eps,
        KIND={1.0: _ONE, 2.0: _TWO, torch.inf: _LARGEST}.get(p, _GENERAL),
        WHOLE=whole,
        DIVIDE=x.dtype == torch.float64,
        T_R=tile.rows,
        T_C=tile.columns,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return y


@jit
def _magnitudes(
    x: tl.tensor,
    mask: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    mask_row: tl.tensor,
    mask_column: tl.tensor,
) -> tl.tensor:
    """Elements of a tile, their magnitudes (0 where nothing is real), and where they are, inside and real."""
    inside = (row < rows) & (column < width)
    element = tl.load(x + row * width + column, mask=inside, other=0)
    size = tl.abs(raised(element, tl.float64))
    real = inside
    if mask is not None:
        real = inside & (tl.load(mask + row * mask_row + column * mask_column, mask=inside, other=0) != 0)
        size = tl.where(real, size, 0.0)
    return element, size, inside, real


@jit
def _powers(size: tl.tensor, largest: tl.tensor, p: tl.tensor, KIND: tl.constexpr, DIVIDE: tl.constexpr) -> tl.tensor:
    """What adds up: magnitudes to the power p, of the largest where float64 could not hold them otherwise."""
    if KIND == 3:
        # Nothing but a NaN counts beside the largest.
        return tl.where(size != size, size, 0.0)
    if KIND == 0:
        ratio = size / nonzero(largest)
        return tl.where(ratio == 0, 0.0, tl.exp2(p * tl.log2(ratio)))
    if DIVIDE:
        size = size / nonzero(largest)
    return size if KIND == 1 else size * size


@jit
def _norm(
    total: tl.tensor, largest: tl.tensor, inverse: tl.tensor, eps: tl.tensor, KIND: tl.constexpr, DIVIDE: tl.constexpr
) -> tl.tensor:
    """The divisor: the norm, eps if that is larger, 1 for 0. A NaN, or (but for KIND 3) an infinity, leaves none."""
    if KIND == 3:
        norm = largest + total
    elif KIND == 0:
        norm = tl.where(total == 0, 0.0, largest * tl.exp2(inverse * tl.log2(total)))
    else:
        norm = total if KIND == 1 else tl.sqrt(total)
        norm = norm * largest if DIVIDE else tl.where(norm < INF, norm, float("nan"))
    return nonzero(tl.where(norm < eps, eps, norm))


@jit
def _divided(element: tl.tensor, norm: tl.tensor, real: tl.tensor, TO: tl.constexpr, DIVIDE: tl.constexpr) -> tl.tensor:
    """Elements by their norm; those that are not real as they are."""
    value = raised(element, tl.float64)
    value = value / norm if DIVIDE else value * (1.0 / norm)
    return tl.where(real, rounded(value, TO), element.to(TO))


@jit
def power_rows(
    x: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    mask_row: tl.tensor,
    mask_column: tl.tensor,
    p: tl.float64,
    inverse: tl.float64,
    eps: tl.float64,
    KIND: tl.constexpr,
    WHOLE: tl.constexpr,
    DIVIDE: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """T_R rows at a time, whole ones in registers, and every so many rows after them."""
    lane = tl.arange(0, T_C)[None, :]
    SCALED: tl.constexpr = DIVIDE or KIND == 0 or KIND == 3
    for group in tl.range(tl.program_id(0), tl.cdiv(rows, T_R), tl.num_programs(0), num_stages=STAGES):
        row = (tl.arange(0, T_R) + tl.full((T_R,), 0, tl.int64) + group * T_R)[:, None]
        largest = tl.full((T_R, 1), 1.0, tl.float64)
        if WHOLE:
            element, size, inside, real = _magnitudes(x, mask, row, lane, rows, width, mask_row, mask_column)
            if SCALED:
                largest = tl.max(size, 1, keep_dims=True)
            total = tl.sum(_powers(size, largest, p, KIND, DIVIDE), 1, keep_dims=True)
            norm = _norm(total, largest, inverse, eps, KIND, DIVIDE)
            result = _divided(element, norm, real, out.dtype.element_ty, DIVIDE)
            tl.store(out + row * width + lane, result, mask=inside)
        else:
            if SCALED:
                most = tl.zeros((T_R, T_C), tl.float64)
                for start in range(0, width, T_C):
                    element, size, inside, real = _magnitudes(
                        x, mask, row, start + lane, rows, width, mask_row, mask_column
                    )
                    most = tl.maximum(most, size)
                largest = tl.max(most, 1, keep_dims=True)
            sums = tl.zeros((T_R, T_C), tl.float64)
            for start in range(0, width, T_C):
                element, size, inside, real = _magnitudes(
                    x, mask, row, start + lane, rows, width, mask_row, mask_column
                )
                sums += _powers(size, largest, p, KIND, DIVIDE)
            norm = _norm(tl.sum(sums, 1, keep_dims=True), largest, inverse, eps, KIND, DIVIDE)
            for start in range(0, width, T_C):
                element, size, inside, real = _magnitudes(
                    x, mask, row, start + lane, rows, width, mask_row, mask_column
                )
                result = _divided(element, norm, real, out.dtype.element_ty, DIVIDE)
                tl.store(out + row * width + start + lane, result, mask=inside)
