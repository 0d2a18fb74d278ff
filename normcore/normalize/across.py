"""Over axes of the caller's choice, or neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from torch import Tensor

from normcore import layout
from normcore.errors import InvalidParameter, ShapeMismatch
from normcore.kernels import launch
from normcore.kernels.base import ToUnit


def mean_variance_norm(
    x: Tensor,
    axes: Sequence[int] = (0, 2, 3),
    *,
    eps: float = 1e-9,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / (deviation + eps) over `axes`: ONNX's MeanVarianceNormalization.

    Raises:
        ShapeMismatch: x has no such axes; the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    into, rule = layout.target(out, x), ToUnit(0.0, std_eps=eps)
    if kept := layout.one_channel_axis(x, axes):
        view = layout.by_channel_axes(x, kept, mask)
        y, _ = launch.channel_norm(view.x, view.shape, rule, view.mask, into)
        return layout.delivered(y, out)
    rows = layout.by_axes(x, axes, mask)
    each = None if rows.mask is None else rows.mask[None]
    y, _ = launch.channel_norm(rows.x, (1, *rows.shape), rule, each)
    return layout.delivered(layout.from_axes(y, axes, x), out)


def lp_norm(
    x: Tensor,
    p: float = 2.0,
    axis: int = 1,
    *,
    eps: float = 1e-12,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x / max(norm, eps) with the p-norm along an axis, as torch.nn.functional.normalize; p = inf: largest magnitude.

    The norm is scaled by the largest magnitude, so that 1e200 does not overflow; zeros give zeros.

    Raises:
        ShapeMismatch: x has no such axis; the mask does not fit.
        InvalidParameter: p or eps is out of range.
    """
    layout.check_eps(eps)
    if not p > 0:
        raise InvalidParameter("p", f"is {p!r}; expected a number above 0, or infinity")
    view = layout.by_axes(x, (axis,), mask)
    into = layout.target(out, x)
    y = launch.power_norm(view.x, view.shape, p, eps, view.mask, into if view.x is x else None)
    return layout.delivered(layout.from_axes(y, (axis,), x), out)


def local_response_norm(
    x: Tensor,
    size: int,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x / (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta, as torch.nn.LocalResponseNorm.

    After Krizhevsky, Sutskever, Hinton 2012, whose alpha is not divided by size. x is (N, C, ...). For an odd size,
    ONNX's LRN is the same; for an even one torch, and this, takes one channel more before than after, ONNX one more
    after. Padding counts as 0. Time and memory grow with C * min(size, C).

    Raises:
        ShapeMismatch: x has no channels; the mask does not fit.
        InvalidParameter: size, alpha, beta or k is out of range.
    """
    if size < 1:
        raise InvalidParameter("size", f"is {size}; expected at least 1")
    if not (alpha >= 0 and k > 0 and isfinite(alpha) and isfinite(beta) and isfinite(k)):
        raise InvalidParameter("alpha", f"is {alpha!r}, beta {beta!r}, k {k!r}; expected finite, alpha >= 0 and k > 0")
    if x.dim() < 2:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected (N, C, ...)")
    view = layout.by_channel(x.contiguous(), 1, mask=mask)
    y = launch.neighbour_norm(view.x, view.shape, size, alpha, beta, k, view.mask, layout.target(out, view.x))
    return layout.delivered(y, out)
