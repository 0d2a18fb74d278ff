"""Operations on the channels of x (A, C, B)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from normcore.kernels.base import ChannelMoments, Coefficients, Launch, Rule, ToRange, coefficients, output_type
from normcore.kernels.cpu.compiled import apply, moments, norm, sums
from normcore.kernels.cpu.merging import composed
from normcore.kernels.cpu.plan import (
    SMALL,
    Numbers,
    Shape3,
    blocks,
    fused_tile,
    grain,
    numbers,
    output,
    parameters,
    reals,
    streams,
    strides,
    workspace,
)
from normcore.kernels.cpu.threads import share

_UNMASKED = (0, 0, 0)
# Channels whose coefficients are kept for what comes next: 40 bytes each.
_MOST_KEPT = 4096


def channel_moments(
    x: Tensor, shape: Shape3, mask: Tensor | None = None, weights: Tensor | None = None, *, omit: bool = False
) -> ChannelMoments:
    """The moments of each channel of x (A, C, B)."""
    before, channels, after = shape
    if before * channels * after == 0:
        return _nothing(channels)
    cut = blocks(before, channels, after)
    found = torch.empty(cut.of_channel, sums.ROWS, channels, dtype=torch.float64)
    steps = _UNMASKED if mask is None else strides(mask)
    plan = numbers(*shape, *cut[:3], *steps, mask is not None, weights is not None, omit)
    run = moments.block_moments.of(x.dtype)
    source, target = x.data_ptr(), found.data_ptr()
    real, weight = 0 if mask is None else mask.data_ptr(), 0 if weights is None else weights.data_ptr()
    if x.numel() <= SMALL:
        plain = run(source, plan.address, 0, cut.total, real, weight, workspace.work, target)
    else:
        each: list[bool] = []

        def part(turns: int) -> None:
            each.append(run(source, plan.address, turns, cut.total, real, weight, workspace.work, target))

        share(cut.total, grain(cut.rows * cut.span * cut.tile * x.itemsize), part)
        plain = all(each)
    if cut.of_channel == 1:
        return _one(found, plain=plain)
    values = composed(found, sums.ROWS * channels, None, between=True)
    if plain:
        return ChannelMoments(values, None, plain=True)
    nonfinite = found[:, sums.NONFINITE].sum(0)
    if not omit:
        values[1:, nonfinite > 0] = torch.nan
    return ChannelMoments(values, nonfinite)


def channel_apply(
    x: Tensor, shape: Shape3, by: Coefficients, mask: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Each channel of x (A, C, B) by its coefficients."""
    y = output(x) if out is None else out
    before, channels, after = shape
    if before * channels * after == 0:
        return y
    _apply(x.data_ptr(), y.data_ptr(), x.dtype, shape, by, mask)
    return y


def _apply(
    source: int, target: int, dtype: torch.dtype, shape: Shape3, by: Coefficients, mask: Tensor | None = None
) -> None:
    """x at an address into y at another; with a mask the output is staged where it is the input."""
    before, channels, after = shape
    cut = blocks(before, channels, after)
    streaming = streams(target, output_type(dtype).itemsize, before * channels * after)
    steps, real = (_UNMASKED, 0) if mask is None else (strides(mask), mask.data_ptr())
    staged = streaming or (mask is not None and source == target)
    plan = numbers(*shape, *cut[:3], *steps, mask is not None, staged, streaming)
    run, values = apply.block_apply.of(dtype), by.values.data_ptr()

    def part(turns: int) -> None:
        run(
            source, target, plan.address, turns, cut.total, values, by.low, by.high, real, workspace.table,
            workspace.scratch,
        )  # fmt: skip

    share(cut.total, grain(cut.rows * cut.span * cut.tile * dtype.itemsize), part)


def channel_norm(
    x: Tensor,
    shape: Shape3,
    rule: Rule,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    *,
    omit: bool = False,
) -> tuple[Tensor, ChannelMoments]:
    """Each channel of x (A, C, B) by a rule from its own moments, and those: fused where a core's cache holds it."""
    y = output(x) if out is None else out
    before, channels, after = shape
    if before * channels * after == 0:
        return y, _nothing(channels)
    steps = None if mask is None else strides(mask)
    in_place = mask is not None and x.data_ptr() == y.data_ptr()
    tile, room, plan = _fused(shape, x.itemsize, streams(y.data_ptr(), y.itemsize, y.numel()), steps, in_place, omit)
    if not tile:
        own = channel_moments(x, shape, mask, omit=omit)
        return channel_apply(x, shape, coefficients(rule, own.values), mask, y), own
    found = torch.empty(sums.ROWS, channels, dtype=torch.float64)
    if isinstance(rule, ToRange):
        how = reals(0.0, 0.0, rule.low, rule.high, *((rule.low, rule.high) if rule.clip else (-torch.inf, torch.inf)))
        weight, bias, kind = 0, 0, torch.float64
    else:
        how = _unit(rule.eps, rule.std_eps, rule.clip)
        weight, bias, kind = parameters(rule.weight, rule.bias)
    run = norm.channel_norm.of(x.dtype, kind)
    source, target, values = x.data_ptr(), y.data_ptr(), found.data_ptr()
    real = 0 if mask is None else mask.data_ptr()

    tiles = -(-channels // tile)

    def part(turns: int) -> bool:
        workspace.reserve(room)
        return run(  # type: ignore[no-any-return]
            source, target, plan.address, turns, tiles, how.address, weight, bias, real,
            workspace.work, workspace.table, workspace.partial, workspace.scratch, values,
        )  # fmt: skip

    if x.numel() <= SMALL:
        return y, _one(found, plain=part(0))
    plain: list[bool] = []
    share(tiles, grain(before * tile * after * x.itemsize), lambda turns: plain.append(part(turns)))
    return y, _one(found, plain=all(plain))


def standardize(
    x: Tensor,
    shape: Shape3,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    clip: float,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Each channel of x (A, C, B) by a mean and a population variance, float64 (C,)."""
    if mask is None and _is_small(shape):
        y = output(x) if out is None else out
        _standardize(x.data_ptr(), y.data_ptr(), x.dtype, shape, mean, var, eps, weight, bias, clip)
        return y
    return channel_apply(x, shape, _by(mean, var, eps, weight, bias, clip), mask, out)


def standardize_like(
    x: Tensor,
    shape: Shape3,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    clip: float,
) -> Launch | None:
    """`standardize` of tensors like x; None where there are many channels, whose coefficients would be kept.

    Its kernels are there then; NotCompiled is raised otherwise, so that nothing made ready goes by the reference.
    """
    dtype = x.dtype
    if _is_small(shape):
        norm.standardize.of(dtype, parameters(weight, bias)[2])
        return lambda source, target: _standardize(source, target, dtype, shape, mean, var, eps, weight, bias, clip)
    if shape[1] > _MOST_KEPT:
        return None
    apply.block_apply.of(dtype)
    by = _by(mean, var, eps, weight, bias, clip)
    return lambda source, target: _apply(source, target, dtype, shape, by)


def _is_small(shape: Shape3) -> bool:
    """Whether coefficients are made in the pass that applies them."""
    before, channels, after = shape
    return channels * after <= sums.TILE and before * channels * after <= SMALL


def _standardize(
    source: int,
    target: int,
    dtype: torch.dtype,
    shape: Shape3,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    clip: float,
) -> None:
    """A small x at an address into y at another."""
    before, channels, after = shape
    scale, shift, kind = parameters(weight, bias)
    norm.standardize.of(dtype, kind)(
        source, target, before, channels, after, mean.data_ptr(), var.data_ptr(), eps, scale, shift, clip,
        workspace.table,
    )  # fmt: skip


def _by(mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None, clip: float) -> Coefficients:
    """What standardizing is, of each channel."""
    scale, shift, kind = parameters(weight, bias)
    values = torch.empty(5, mean.numel(), dtype=torch.float64)
    norm.unit_coefficients.of(torch.float64, kind)(
        mean.data_ptr(), var.data_ptr(), mean.numel(), eps, scale, shift, values.data_ptr()
    )
    return Coefficients(values, -clip, clip)


@lru_cache(maxsize=4096)
def _fused(
    shape: Shape3, itemsize: int, streaming: bool, mask: tuple[int, ...] | None, staged: bool, omit: bool
) -> tuple[int, int, Numbers]:
    """How many channels a tile has, 0 where it is better not to fuse; float64 it needs room for; the kernel's plan."""
    tile = fused_tile(*shape, itemsize)
    cut = blocks(*shape)
    steps = (0, 0, 0, 0) if mask is None else (*mask, 1)
    plan = numbers(*shape, cut.rows, cut.span, tile, *steps, streaming or staged, streaming, omit)
    return tile, (cut.of_channel + 1) * sums.ROWS * tile, plan


@lru_cache(maxsize=256)
def _unit(eps: float, std_eps: float, clip: float) -> Numbers:
    """`ToUnit` as norm.channel_norm reads it."""
    return reals(eps, std_eps, torch.nan, torch.nan, -clip, clip)


def _one(block: Tensor, *, plain: bool) -> ChannelMoments:
    """A block (8, C), or the only one of (1, 8, C)."""
    channels = block.shape[-1]
    values = block.as_strided((7, channels), (channels, 1))
    return ChannelMoments(values, None if plain else block.reshape(8, channels)[sums.NONFINITE], plain)


def _nothing(channels: int) -> ChannelMoments:
    values = torch.zeros(7, channels, dtype=torch.float64)
    values[5:] = torch.tensor([[torch.inf], [-torch.inf]])
    return ChannelMoments(values, None)
