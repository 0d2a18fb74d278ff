"""The one place that knows axes: every normalization is brought to one of a few layouts here, in place where memory
allows it, and back.

N samples, C channels, L positions (all further axes), G groups. A layout is dense memory and a shape to see it in;
masks have the rank of that shape, and size 1 where they are the same all along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import NamedTuple

import torch
from torch import Tensor

from normcore.errors import InvalidParameter, ShapeMismatch
from normcore.kernels.base import output_dtype


class ChannelView(NamedTuple):
    """Dense x, seen as (A, C, B): A is all before the channel axis, B all after; weights are (A, 1, 1)."""

    x: Tensor
    shape: tuple[int, int, int]
    mask: Tensor | None
    weights: Tensor | None


class RowView(NamedTuple):
    """Dense x, seen as (R, K): R is what is kept, K what is averaged over."""

    x: Tensor
    shape: tuple[int, int]
    mask: Tensor | None


def by_channel(
    x: Tensor,
    channel_axis: int,
    num_features: int | None = None,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> ChannelView:
    """The layout (A, C, B); or (A * B, C, 1) where channels lie side by side in memory, as in torch.channels_last.

    1-D x (N,) is N rows where num_features is 1. A sample of weight 0 is masked out.

    Raises:
        ShapeMismatch: x has no such axis, or of another size; mask or weights do not fit x.
        InvalidParameter: a weight is negative or not finite.
    """
    if mask is None and weights is None and x.is_contiguous():  # mostly
        sizes = x.shape
        axis = channel_axis if channel_axis >= 0 else channel_axis + len(sizes)
        if 0 <= axis < len(sizes) > 1 and (num_features is None or sizes[axis] == num_features):
            after = 1 if axis == len(sizes) - 1 else prod(sizes[axis + 1 :])
            before = sizes[0] if axis == 1 else prod(sizes[:axis])
            # A third of the time that the view's own constructor takes.
            return tuple.__new__(ChannelView, (x, (before, sizes[axis], after), None, None))
    check_mask(mask, x)
    axis = check_features(x, num_features, channel_axis)
    kept = () if x.dim() == 1 and num_features == 1 else (axis,)
    view = _channels(x, axis, kept, mask)
    if weights is None:
        return view
    x, shape, folded, _ = view
    rows = _row_weights(weights, x, axis, shape[0])
    real = rows > 0
    if not bool(real.all()):
        folded = real if folded is None else folded & real
    return ChannelView(x, shape, folded, rows)


def by_channel_axes(x: Tensor, axes: tuple[int, ...], mask: Tensor | None = None) -> ChannelView:
    """The same, where several axes side by side are the channels.

    Raises:
        ShapeMismatch: the mask does not fit x.
    """
    check_mask(mask, x)
    return _channels(x, axes[0], axes, mask)


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
    given = x.shape
    if mask is None and given and given[-1] == normalized_shape and x.is_contiguous():  # mostly
        length = given[-1]
        return tuple.__new__(RowView, (x, (given[0] if len(given) == 2 else prod(given[:-1]), length), None))
    check_mask(mask, x)
    sizes = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    kept = len(given) - len(sizes)
    if not sizes or given[kept:] != sizes:
        raise ShapeMismatch("x", f".shape is {list(given)}; expected it to end in normalized_shape = {list(sizes)}")
    return _rows(x, kept, mask)


def by_group(x: Tensor, num_groups: int | None = None, mask: Tensor | None = None) -> RowView:
    """The layout (N * G, C / G * L) of x (N, C, ...); G = C if num_groups is None.

    Raises:
        ShapeMismatch: x has no channels; num_groups does not divide C; the mask does not fit x.
    """
    check_mask(mask, x)
    if x.dim() < 2:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected (N, C, ...)")
    x = x if x.is_contiguous() else x.contiguous()
    samples, channels, *rest = x.shape
    groups = channels if num_groups is None else num_groups
    if num_groups is not None and (groups < 1 or channels % groups):
        raise ShapeMismatch("num_groups", f"is {groups}; expected a divisor of x.shape[1] = {channels}")
    shape = (samples * groups, (channels // groups if groups else 1) * prod(rest))
    if groups == channels and mask is not None:
        mask = _fold(mask, x.shape, (tuple(range(2)), tuple(range(2, x.dim()))))
    elif mask is not None:
        mask = mask.expand(x.shape).reshape(shape)
    return RowView(x, shape, mask)


def by_axes(x: Tensor, axes: Sequence[int], mask: Tensor | None = None) -> RowView:
    """The layout (R, K): K are all of `axes`, R all others, moved if they must; `from_axes` is the way back.

    Raises:
        ShapeMismatch: x has no such axis; one is named twice; the mask does not fit x.
    """
    if mask is None and _are_last(x, axes) and x.is_contiguous():  # mostly
        return RowView(x, (x.numel() // x.shape[-1] if x.shape[-1] else prod(x.shape[:-1]), x.shape[-1]), None)
    check_mask(mask, x)
    order = _order(x, axes)
    if order == sorted(order):
        return _rows(x, x.dim() - len(axes), mask)
    return _rows(x.permute(order), x.dim() - len(axes), None if mask is None else mask.permute(order))


def from_axes(y: Tensor, axes: Sequence[int], x: Tensor) -> Tensor:
    """The inverse of `by_axes`: y with its axes where x has them."""
    if _are_last(x, axes):
        return y
    order = _order(x, axes)
    return y if order == sorted(order) else y.permute([order.index(axis) for axis in range(x.dim())])


def one_channel_axis(x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes that are not in `axes`, where they are side by side, so that they are as good as one; else ().

    Raises:
        ShapeMismatch: x has no such axis; one is named twice.
    """
    kept = _order(x, axes)[: x.dim() - len(axes)]
    return tuple(kept) if kept and kept[-1] - kept[0] == len(kept) - 1 else ()


def affine(weight: Tensor | None, bias: Tensor | None, count: int, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Parameters of so many values each, as kernels take them: dense, on x's device, both float32 or both float64.

    Raises:
        ShapeMismatch: one has another number of values.
    """
    kind = torch.float32
    for one in (weight, bias):
        if one is not None and not (
            one.dtype is kind and one.numel() == count and one.is_contiguous() and one.is_cpu and not one.requires_grad
        ):
            break
    else:
        if x.is_cpu or (weight is None and bias is None):  # mostly
            return weight, bias
    if (weight is not None and weight.dtype is not kind) or (bias is not None and bias.dtype is not kind):
        kind = torch.float64
    return (
        None if weight is None else _sized(weight, count, kind, x, "weight"),
        None if bias is None else _sized(bias, count, kind, x, "bias"),
    )


def target(out: Tensor | None, x: Tensor) -> Tensor | None:
    """The buffer itself where a kernel can write into it: memory in the order of x's. `delivered` sees to the rest.

    Raises:
        ShapeMismatch: it has another shape than x.
        InvalidParameter: another type than the output's, or another device.
    """
    if out is None:
        return None
    if out.shape != x.shape:
        raise ShapeMismatch("out", f".shape is {list(out.shape)}; expected x's, {list(x.shape)}")
    if out.dtype != output_dtype(x) or out.device != x.device:
        raise InvalidParameter("out", f"is {out.dtype} on {out.device}; expected {output_dtype(x)} on {x.device}")
    return out.detach() if out.stride() == x.stride() else None


def delivered(y: Tensor, out: Tensor | None) -> Tensor:
    """The output, in the caller's buffer where there is one."""
    if out is None:
        return y
    if y.data_ptr() != out.data_ptr():
        out.detach().copy_(y)
    return out


def per_channel(value: Tensor, channels: int, x: Tensor, name: str) -> Tensor:
    """A statistic of each channel as kernels take it: float64 (C,), dense, on x's device.

    Raises:
        ShapeMismatch: it has another number of values.
    """
    if (
        value.dtype is torch.float64
        and value.shape == (channels,)
        and value.is_contiguous()
        and value.is_cpu
        and x.is_cpu
    ):
        return value.detach() if value.requires_grad else value
    found = _sized(value, channels, torch.float64, x, name)
    return found if found.dim() == 1 else found.reshape(channels)


def check_eps(eps: float) -> None:
    """Check that eps is a finite number of at least 0.

    Raises:
        InvalidParameter: it is not.
    """
    if not 0 <= eps < inf:
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


def _are_last(x: Tensor, axes: Sequence[int]) -> bool:
    """Whether the axes are the last one."""
    return len(axes) == 1 and x.dim() > 0 and axes[0] in (-1, x.dim() - 1)


def _order(x: Tensor, axes: Sequence[int]) -> list[int]:
    last = [_axis(x, axis, "axes") for axis in axes]
    if len(set(last)) != len(last):
        raise ShapeMismatch("axes", f"are {list(axes)}; expected each axis once")
    return [axis for axis in range(x.dim()) if axis not in last] + last


def _channels(x: Tensor, axis: int, channels: tuple[int, ...], mask: Tensor | None) -> ChannelView:
    """Dense (A, C, B), the channel axes beginning at `axis`; channels last where they lie so."""
    last = False
    if not x.is_contiguous():
        last = len(channels) == 1 and x.movedim(axis, -1).is_contiguous()
        x = x if last else x.contiguous()
    sizes = x.shape
    before, after = tuple(range(axis)), tuple(range(axis + len(channels), len(sizes)))
    groups = (before + after, channels, ()) if last else (before, channels, after)
    if not channels:  # one axis, of rows
        groups = ((0,), (), ())
    shape = (
        prod(sizes[one] for one in groups[0]),
        prod(sizes[one] for one in groups[1]),
        prod(sizes[one] for one in groups[2]),
    )
    return ChannelView(x, shape, None if mask is None else _fold(mask, sizes, groups), None)


def _rows(x: Tensor, kept: int, mask: Tensor | None) -> RowView:
    """Dense rows of all but the first `kept` axes."""
    x = x if x.is_contiguous() else x.contiguous()
    sizes = x.shape
    folded = None if mask is None else _fold(mask, sizes, (tuple(range(kept)), tuple(range(kept, len(sizes)))))
    return RowView(x, (prod(sizes[:kept]), prod(sizes[kept:])), folded)


def _fold(mask: Tensor, sizes: torch.Size, groups: Sequence[tuple[int, ...]]) -> Tensor:
    """A mask with an axis for each group of its own, of size 1 where it is 1 on all of the group's."""
    full, shape = list(mask.shape), []
    for group in groups:
        same = all(mask.shape[axis] == 1 for axis in group)
        if not same:
            for axis in group:
                full[axis] = sizes[axis]
        shape.append(1 if same else prod(sizes[axis] for axis in group))
    return mask.expand(full).permute([axis for group in groups for axis in group]).reshape(shape)


def _sized(value: Tensor, count: int, dtype: torch.dtype, x: Tensor, name: str) -> Tensor:
    """A parameter of so many values, dense, of a type, on x's device."""
    if value.numel() != count:
        raise ShapeMismatch(name, f"has {value.numel()} values; expected {count}")
    if value.dtype is dtype and value.is_contiguous() and value.is_cpu and x.is_cpu:
        return value.detach() if value.requires_grad else value
    return value.detach().to(x.device, dtype).contiguous()


def _row_weights(weights: Tensor, x: Tensor, axis: int, rows: int) -> Tensor:
    if axis == 0 and x.dim() > 1:
        raise ShapeMismatch("weights", "are one per slice of axis 0, which is the channel axis; expected samples there")
    if weights.shape != x.shape[:1]:
        raise ShapeMismatch("weights", f".shape is {list(weights.shape)}; expected [{x.shape[0]}], one per sample")
    values = weights.detach().to(x.device, torch.float64)
    bad = ~(torch.isfinite(values) & (values >= 0))
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise InvalidParameter("weights", f"[{index}] is {values[index].item()}; expected a finite number, at least 0")
    return values.repeat_interleave(rows // max(1, values.shape[0])).reshape(-1, 1, 1)
