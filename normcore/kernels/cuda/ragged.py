"""Rows of different lengths in one arena, in one launch: a fixed grid whose programs go over the rows."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from normcore.kernels.cuda import tuning
from normcore.kernels.cuda.elements import jit, raised, rounded
from normcore.kernels.cuda.rows import deviations, finished, own, read_row, write_row
from normcore.kernels.cuda.views import has_16_bits, output, stored


def row_norm_ragged(
    x: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Rows of an arena x (E,) normalized: see `normcore.kernels.reference.row_norm_ragged`."""
    y = output(x, out)
    rows = starts.numel()
    if rows == 0 or x.numel() == 0:
        return y
    # Lengths are on the device, and asking for them would wait for it: their mean is known without.
    longest = next((t.numel() for t in (weight, bias) if t is not None), None)
    tile = tuning.ragged_tile(tuning.ceil_div(x.numel(), rows), longest)
    row_norm_ragged_rows[(min(tuning.ceil_div(rows, tile.rows), tuning.PROGRAMS * tuning.multiprocessors(x.device)),)](
        stored(x),
        y,
        starts.contiguous(),
        lengths.contiguous(),
        weight,
        bias,
        rows,
        eps,
        CENTER=center,
        REFINE=not has_16_bits(x),
        DIVIDE=x.dtype == torch.float64,
        T_R=tile.rows,
        T_C=tile.columns,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return y


@jit
def row_norm_ragged_rows(
    x: tl.tensor,
    out: tl.tensor,
    starts: tl.tensor,
    lengths: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    eps: tl.float64,
    CENTER: tl.constexpr,
    REFINE: tl.constexpr,
    DIVIDE: tl.constexpr,
    T_R: tl.constexpr,
    T_C: tl.constexpr,
) -> None:
    """T_R rows at a time in registers, or, where one of them is longer than a tile, each in turn along it."""
    lane = tl.arange(0, T_C)[None, :]
    for group in range(tl.program_id(0), tl.cdiv(rows, T_R), tl.num_programs(0)):
        row = tl.arange(0, T_R) + group * T_R
        start = tl.load(starts + row, mask=row < rows, other=0)
        length = tl.load(lengths + row, mask=row < rows, other=0)
        if tl.max(length, 0) <= T_C:
            place = start[:, None] + lane
            inside = lane < length[:, None]
            element = tl.load(x + place, mask=inside, other=0)
            n = tl.maximum(length[:, None], 1).to(tl.float64)
            value, variance = deviations(raised(element, tl.float64), inside, n, CENTER, REFINE, False)
            scale, shift = own(weight, bias, lane, inside)
            result = finished(value, variance + eps, scale, shift, weight is not None, bias is not None, DIVIDE)
            tl.store(out + place, rounded(result, out.dtype.element_ty), mask=inside)
        else:
            for one in range(group * T_R, tl.minimum(group * T_R + T_R, rows)):
                begin = tl.load(starts + one)
                width = tl.load(lengths + one)
                mean, rest, variance = read_row(x + begin, None, 0, width, CENTER, T_C, 1)
                place = out + begin
                write_row(x + begin, None, 0, place, weight, bias, 1, width, mean, rest, variance + eps, DIVIDE, T_C, 1)
