"""Which elements are real: lengths or a mask of any accepted form, brought to one bool tensor of x's rank.

Padding is in no statistic, and stays exactly as it was in the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normcore import layout
from normcore.errors import InvalidParameter, ShapeMismatch


def to_mask(
    x: Tensor, *, lengths: Tensor | None = None, mask: Tensor | None = None, channel_axis: int | None = None
) -> Tensor | None:
    """The mask of x: bool, of x's rank, broadcastable to x, True where a value is real; None if all are.

    Args:
        x: shape (N, ...).
        lengths: integers (N,), 0 <= length <= L, where L is the size of x's first axis after the batch that is not the
            channel axis; the first `length` positions along it are real.
        mask: bool; of x's rank, it broadcasts as it is; of fewer axes, they are x's leading ones in order, the channel
            axis left out: (N, L) for x (N, C, L, ...) with channel_axis 1, or for x (N, L, ...) with None.
        channel_axis: the axis that padding does not run along; None if there is none.

    Raises:
        ShapeMismatch: sizes or ranks do not fit.
        InvalidParameter: both are given; a dtype is wrong; a length is outside 0 to L.
    """
    if lengths is not None:
        if mask is not None:
            raise InvalidParameter("lengths", "and mask are both given; expected one of them")
        mask = _from_lengths(lengths, x, channel_axis)
    if mask is None:
        return None
    if mask.dim() < x.dim():
        mask = _aligned(mask, x, channel_axis)
    layout.check_mask(mask, x)
    return mask.to(x.device)


def _from_lengths(lengths: Tensor, x: Tensor, channel_axis: int | None) -> Tensor:
    """(N, L)."""
    axes = _padded_axes(x, channel_axis)
    if len(axes) < 2:
        raise ShapeMismatch("lengths", f"are given, but x of shape {list(x.shape)} has no axis for them to run along")
    samples, positions = (x.shape[axis] for axis in axes[:2])
    if lengths.shape != (samples,):
        raise ShapeMismatch("lengths", f".shape is {list(lengths.shape)}; expected [{samples}], one per sample")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise InvalidParameter("lengths", f"are {lengths.dtype}; expected integers")
    lengths = lengths.to(x.device, torch.int64)
    bad = (lengths < 0) | (lengths > positions)
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise InvalidParameter("lengths", f"[{index}] is {int(lengths[index])}; expected 0 to {positions}")
    if x.numel() == 0:  # nothing to mark, and an axis beside an empty one may be of any size
        return torch.zeros(samples, 1, dtype=torch.bool, device=x.device)
    return torch.arange(positions, device=x.device) < lengths[:, None]


def _aligned(mask: Tensor, x: Tensor, channel_axis: int | None) -> Tensor:
    shape = [1] * x.dim()
    for size, axis in zip(mask.shape, _padded_axes(x, channel_axis), strict=False):
        if size not in (1, x.shape[axis]):
            raise ShapeMismatch(
                "mask", f".shape is {list(mask.shape)}; expected x.shape[{axis}] = {x.shape[axis]} where it has {size}"
            )
        shape[axis] = size
    return mask.reshape(shape)


def _padded_axes(x: Tensor, channel_axis: int | None) -> list[int]:
    """x's axes but the channel axis. A 1-D x has no channel axis: it is rows of a single feature."""
    if channel_axis is None or x.dim() == 1:
        return list(range(x.dim()))
    if not -x.dim() <= channel_axis < x.dim():
        raise ShapeMismatch("channel_axis", f"is {channel_axis}; expected an axis of x, whose shape is {list(x.shape)}")
    return [axis for axis in range(x.dim()) if axis != channel_axis % x.dim()]
