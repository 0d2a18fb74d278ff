"""Each sample over its trailing axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normcore import layout
from normcore.kernels import launch
from normcore.kernels.base import Launch, output_dtype


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the trailing axes, as torch.nn.LayerNorm.

    After Ba, Kiros, Hinton 2016. weight and bias have a value for each element of normalized_shape.

    Raises:
        ShapeMismatch: x does not end in normalized_shape; a parameter, the mask or out does not fit.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    x, shape, mask = layout.by_row(x, normalized_shape, mask)
    if weight is not None or bias is not None:
        weight, bias = layout.affine(weight, bias, shape[1], x)
    into = None if out is None else layout.target(out, x)
    y = launch.row_norm(x, shape, eps, True, weight, bias, (1, shape[1]), mask, into)
    return y if out is None else layout.delivered(y, out)


def layer_norm_like(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Launch | None:
    """`layer_norm`, made ready for tensors of x's shape and dtype that are dense: see normcore.kernels.base.Launch.

    None where nothing is gained by that. What is checked is checked once.

    Raises:
        ShapeMismatch, InvalidParameter: as `layer_norm`.
    """
    layout.check_eps(eps)
    view = layout.by_row(x, normalized_shape)
    return launch.row_norm_like(view.x, view.shape, eps, True, *layout.affine(weight, bias, view.shape[1], x))


def rms_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    *,
    eps: float | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight over the trailing axes (Zhang, Sennrich 2019), as torch.nn.RMSNorm.

    eps is the machine epsilon of the output's type if None, as in torch.

    Raises:
        ShapeMismatch: x does not end in normalized_shape; the weight, the mask or out does not fit.
        InvalidParameter: eps is out of range.
    """
    eps = torch.finfo(output_dtype(x)).eps if eps is None else eps
    layout.check_eps(eps)
    view = layout.by_row(x, normalized_shape, mask)
    length = view.shape[1]
    weight, _ = layout.affine(weight, None, length, x)
    into = None if out is None else layout.target(out, view.x)
    y = launch.row_norm(view.x, view.shape, eps, False, weight, None, (1, length), view.mask, into)
    return y if out is None else layout.delivered(y, out)


def rms_norm_like(
    x: Tensor, normalized_shape: int | Sequence[int], *, eps: float | None = None, weight: Tensor | None = None
) -> Launch | None:
    """`rms_norm`, made ready as `layer_norm_like`.

    Raises:
        ShapeMismatch, InvalidParameter: as `rms_norm`.
    """
    eps = torch.finfo(output_dtype(x)).eps if eps is None else eps
    layout.check_eps(eps)
    view = layout.by_row(x, normalized_shape)
    return launch.row_norm_like(view.x, view.shape, eps, False, *layout.affine(weight, None, view.shape[1], x))
