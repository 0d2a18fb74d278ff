"""The one place that knows axes: every normalization is brought to one of a few layouts here, without a copy where
torch can view the input so, and back.

N samples, C channels, L positions (all further axes), G groups. Shapes are written out, never -1, as any size may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod
from typing import NamedTuple

import torch
from torch import Tensor

from normcore.errors import InvalidParameter, ShapeMismatch


class ChannelView(NamedTuple):
    """x as (A, C, B): A is all before the channel axis, B all after; mask as (A, 1 or C, B); weights as (A, 1, 1)."""

    x: Tensor
    mask: Tensor | None
    weights: Tensor | None


class RowView(NamedTuple):
    """x with the axes that are kept first, those averaged over last; its mask, of the same shape; how many are kept."""

    x: Tensor
    mask: Tensor | None
    kept: int


def by_channel(
    x: Tensor,
    channel_axis: int,
    num_features: int | None = None,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> ChannelView:
    """The layout (A, C, B), in x's own order of elements; `reshape(x.shape)` is the way back.

    1-D x (N,) is N rows where num_features is 1. A sample of weight 0 is masked out.

    Raises:
        ShapeMismatch: x has no such axis, or of another size; mask or weights do not fit x.
        InvalidParameter: a weight is negative or not finite.
    """
    check_mask(mask, x)
    axis = check_features(x, num_features, channel_axis)
    if x.dim() == 1 and num_features == 1:
        x, mask, axis = x[:, None], mask if mask is None else mask[:, None], 1
    folded = None if mask is None else _fold(mask.expand(*x.shape[:axis], mask.shape[axis], *x.shape[axis + 1 :]), axis)
    if weights is None:
        return ChannelView(_fold(x, axis), folded, None)
    rows = _row_weights(weights, x, axis)
    real = rows > 0
    if not bool(real.all()):
        folded = real if folded is None else folded & real
        folded = folded.expand(folded.shape[0], folded.shape[1], prod(x.shape[axis + 1 :]))
    return ChannelView(_fold(x, axis), folded, rows)


def check_features(x: Tensor, num_features: int | None, channel_axis: int) -> int:
    """The channel axis counted from the front.

    Raises:
        ShapeMismatch: x has no such axis, or it is of another size than num_features.
    """
    if x.dim() == 1 and num_features == 1:
        return 0
    axis = _axis(x, channel_axis, "channel_axis")
    if num_features is not None and x.shape[axis] != num_features:
        raise ShapeMismatch("x", f".shape[{axis}] is {x.shape[axis]}; expected num_features = {num_features}")
    return axis


def by_row(x: Tensor, normalized_shape: int | Sequence[int], mask: Tensor | None = None) -> RowView:
    """The layout (R, K): K are the trailing axes of sizes normalized_shape, R all others.

    Raises:
        ShapeMismatch: x does not end in normalized_shape; the mask does not fit x.
    """
    check_mask(mask, x)
    sizes = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not sizes or tuple(x.shape[-len(sizes) :]) != sizes:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected it to end in normalized_shape = {list(sizes)}")
    shape = (prod(x.shape[: x.dim() - len(sizes)]), prod(sizes))
    return RowView(x.reshape(shape), None if mask is None else mask.expand(x.shape).reshape(shape), 1)


def by_group(x: Tensor, num_groups: int | None = None, mask: Tensor | None = None) -> RowView:
    """The layout (N, G, C/G, L) of x (N, C, ...), two axes kept; G = C if num_groups is None.

    Raises:
        ShapeMismatch: x has no channels; num_groups does not divide C; the mask does not fit x.
    """
    check_mask(mask, x)
    if x.dim() < 2:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected (N, C, ...)")
    samples, channels, *rest = x.shape
    groups = channels if num_groups is None else num_groups
    if num_groups is not None and (groups < 1 or channels % groups):
        raise ShapeMismatch("num_groups", f"is {groups}; expected a divisor of x.shape[1] = {channels}")
    shape = (samples, groups, channels // groups if groups else 1, prod(rest))
    return RowView(x.reshape(shape), None if mask is None else mask.expand(x.shape).reshape(shape), 2)


def by_axes(x: Tensor, axes: Sequence[int], mask: Tensor | None = None) -> RowView:
    """The layout (R, K): K are all of `axes`, R all others; `from_axes` is the way back.

    Raises:
        ShapeMismatch: x has no such axis; one is named twice; the mask does not fit x.
    """
    check_mask(mask, x)
    order = _order(x, axes)
    sizes = [x.shape[axis] for axis in order]
    shape = (prod(sizes[: x.dim() - len(axes)]), prod(sizes[x.dim() - len(axes) :]))
    moved = None if mask is None else mask.expand(x.shape).permute(order).reshape(shape)
    return RowView(x.permute(order).reshape(shape), moved, 1)


def from_axes(y: Tensor, axes: Sequence[int], x: Tensor) -> Tensor:
    """The inverse of `by_axes`: y (R, K) in x's shape."""
    order = _order(x, axes)
    moved = y.reshape([x.shape[axis] for axis in order])
    return moved.permute([order.index(axis) for axis in range(x.dim())])


def parameter(value: Tensor | None, shape: Sequence[int], x: Tensor, name: str) -> Tensor | None:
    """A parameter with as many values as `shape` has, as float64 on x's device, in that shape.

    Raises:
        ShapeMismatch: it has another number of values.
    """
    if value is None:
        return None
    if value.numel() != prod(shape):
        raise ShapeMismatch(name, f"has {value.numel()} values; expected {prod(shape)}")
    return value.detach().to(x.device, torch.float64).reshape(*shape)


def check_eps(eps: float) -> None:
    """Check that eps is a finite number of at least 0.

    Raises:
        InvalidParameter: it is not.
    """
    if not (isfinite(eps) and eps >= 0):
        raise InvalidParameter("eps", f"is {eps!r}; expected a finite number, at least 0")


def check_mask(mask: Tensor | None, x: Tensor) -> None:
    """Check that a mask is bool, of x's rank, and broadcasts to x.

    Raises:
        ShapeMismatch: another rank or size.
        InvalidParameter: another dtype.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise InvalidParameter("mask", f"is {mask.dtype}; expected torch.bool")
    fits = mask.dim() == x.dim() and all(m in (1, s) for m, s in zip(mask.shape, x.shape, strict=True))
    if not fits:
        raise ShapeMismatch("mask", f".shape is {list(mask.shape)}; expected {list(x.shape)}, or 1 in place of a size")


def _axis(x: Tensor, axis: int, name: str) -> int:
    if not -x.dim() <= axis < x.dim():
        raise ShapeMismatch(name, f"is {axis}; expected an axis of x, whose shape is {list(x.shape)}")
    return axis % x.dim()


def _order(x: Tensor, axes: Sequence[int]) -> list[int]:
    last = [_axis(x, axis, "axes") for axis in axes]
    if len(set(last)) != len(last):
        raise ShapeMismatch("axes", f"are {list(axes)}; expected each axis once")
    return [axis for axis in range(x.dim()) if axis not in last] + last


def _fold(values: Tensor, axis: int) -> Tensor:
    shape = values.shape
    return values.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))


def _row_weights(weights: Tensor, x: Tensor, axis: int) -> Tensor:
    if axis == 0:
        raise ShapeMismatch("weights", "are one per slice of axis 0, which is the channel axis; expected samples there")
    if weights.shape != x.shape[:1]:
        raise ShapeMismatch("weights", f".shape is {list(weights.shape)}; expected [{x.shape[0]}], one per sample")
    values = weights.detach().to(x.device, torch.float64)
    bad = ~(torch.isfinite(values) & (values >= 0))
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise InvalidParameter("weights", f"[{index}] is {values[index].item()}; expected a finite number, at least 0")
    return values.repeat_interleave(prod(x.shape[1:axis])).reshape(-1, 1, 1)
