"""Operations on the rows of x (R, K), and on rows of an arena."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.kernels.base import M2, MEAN, MEAN_LOW, Launch, output_type
from normcore.kernels.cpu.channels import channel_moments
from normcore.kernels.cpu.compiled import rows
from normcore.kernels.cpu.plan import SMALL, Shape2, grain, numbers, output, parameters, streams, strides, workspace
from normcore.kernels.cpu.threads import share

# Rows from this length on are cut into parts of it, where there are too few to go round.
WIDE = 1 << 16


def row_norm(
    x: Tensor,
    shape: Shape2,
    eps: float,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    per: Shape2 = (1, 1),
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias along each row of x (R, K), weight and bias being `per`, (P, S)."""
    count, length = shape
    scale, shift, kind = parameters(weight, bias)
    y = output(x) if out is None else out
    if count * length == 0:
        return y
    if mask is None and length <= rows.SHORT and (per == (1, length) or scale == shift == 0):
        _short_rows(x.data_ptr(), y.data_ptr(), x.dtype, shape, eps, center, weight, bias)
        return y
    steps = (0, 0) if mask is None else strides(mask)
    source, target, real = x.data_ptr(), y.data_ptr(), 0 if mask is None else mask.data_ptr()
    streaming = streams(target, y.itemsize, count * length)
    staged = streaming or (mask is not None and source == target)
    plan = numbers(length, *per, *steps, mask is not None, center, staged, streaming)
    # A row of a mask that is the same all along is real or padding; the statistics of padding are then not used.
    if length >= WIDE and count < 2 * torch.get_num_threads() and center and steps[1] == 0:
        values = channel_moments(x, (1, count, length)).values
        var = values[M2] / length
        means, rests, vars = values[MEAN].data_ptr(), values[MEAN_LOW].data_ptr(), var.data_ptr()
        apply = rows.row_apply.of(x.dtype, kind)

        cut = count * -(-length // WIDE)

        def parts(turns: int) -> None:
            apply(
                source, target, plan.address, WIDE, turns, cut, means, rests, vars, eps, scale, shift, real,
                workspace.scratch,
            )  # fmt: skip

        share(cut, 4, parts)
        return y
    run = rows.row_norm.of(x.dtype, kind)

    def some(turns: int) -> None:
        run(source, target, plan.address, turns, count, eps, scale, shift, real, workspace.scratch)

    share(count, grain(length * x.itemsize), some)
    return y


def row_norm_like(
    x: Tensor, shape: Shape2, eps: float, center: bool = True, weight: Tensor | None = None, bias: Tensor | None = None
) -> Launch | None:
    """`row_norm` of rows like x's, weight and bias being (1, K); None where rows are long, or there are none.

    NotCompiled is raised as by `standardize_like`.
    """
    count, length = shape
    if not 0 < length <= rows.SHORT or not count:
        return None
    dtype = x.dtype
    rows.short_rows.of(dtype, parameters(weight, bias)[2])
    return lambda source, target: _short_rows(source, target, dtype, shape, eps, center, weight, bias)


def _short_rows(
    source: int,
    target: int,
    dtype: torch.dtype,
    shape: Shape2,
    eps: float,
    center: bool,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Rows at an address into rows at another."""
    count, length = shape
    scale, shift, kind = parameters(weight, bias)
    run = rows.short_rows.of(dtype, kind)
    if count * length <= SMALL:
        run(source, target, 0, count, length, eps, center, False, scale, shift, workspace.work)
        return
    streaming = streams(target, output_type(dtype).itemsize, count * length)
    size = rows.together(length)

    def group(turns: int) -> None:
        run(source, target, turns, count, length, eps, center, streaming, scale, shift, workspace.work)

    share(-(-count // size), grain(size * length * dtype.itemsize), group)


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
    """`row_norm` of rows of different lengths in one arena x (E,)."""
    y = output(x) if out is None else out
    scale, shift, kind = parameters(weight, bias)
    run = rows.row_norm_ragged.of(x.dtype, kind)
    source, target, begin, size = x.data_ptr(), y.data_ptr(), starts.data_ptr(), lengths.data_ptr()

    count = starts.shape[0]

    def part(turns: int) -> None:
        run(source, target, turns, count, begin, size, eps, center, scale, shift)

    share(count, grain(max(1, x.nbytes // max(1, count))), part)
    return y


def power_norm(
    x: Tensor, shape: Shape2, p: float, eps: float, mask: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x / max(norm, eps) along each row of x (R, K); the p-norm is scaled by the largest magnitude."""
    y = output(x) if out is None else out
    count, length = shape
    if count * length == 0:
        return y
    steps = (0, 0) if mask is None else strides(mask)
    source, target, real = x.data_ptr(), y.data_ptr(), 0 if mask is None else mask.data_ptr()
    streaming = streams(target, y.itemsize, count * length)
    staged = streaming or (mask is not None and source == target)
    plan = numbers(length, *steps, mask is not None, staged, streaming)
    run = rows.power_norm.of(x.dtype)

    def part(turns: int) -> None:
        run(source, target, plan.address, turns, count, p, eps, real, workspace.scratch)

    share(count, grain(length * x.itemsize), part)
    return y
