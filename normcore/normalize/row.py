"""Each sample over its trailing axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normcore import layout
from normcore.kernels import reference


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the trailing axes, as torch.nn.LayerNorm.

    After Ba, Kiros, Hinton 2016. weight and bias have a value for each element of normalized_shape.

    Raises:
        ShapeMismatch: x does not end in normalized_shape; a parameter or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    view = layout.by_row(x, normalized_shape, mask)
    weight, bias = _per_element(weight, view.x, "weight"), _per_element(bias, view.x, "bias")
    return reference.row_norm(view.x, 1, eps=eps, weight=weight, bias=bias, mask=view.mask).reshape(x.shape)


def rms_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    *,
    eps: float | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight over the trailing axes (Zhang, Sennrich 2019), as torch.nn.RMSNorm.

    eps is the machine epsilon of the output's type if None, as in torch.

    Raises:
        ShapeMismatch: x does not end in normalized_shape; the weight or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    eps = torch.finfo(reference.output_dtype(x)).eps if eps is None else eps
    layout.check_eps(eps)
    view = layout.by_row(x, normalized_shape, mask)
    weight = _per_element(weight, view.x, "weight")
    return reference.row_norm(view.x, 1, eps=eps, center=False, weight=weight, mask=view.mask).reshape(x.shape)


def _per_element(value: Tensor | None, rows: Tensor, name: str) -> Tensor | None:
    return layout.parameter(value, rows.shape[1:], rows, name)
