"""Each sample over groups of its channels, or over each channel; channels are axis 1 throughout."""

from __future__ import annotations

from torch import Tensor

from normcore import layout
from normcore.errors import ShapeMismatch, TooFewValues
from normcore.kernels import reference


def group_norm(
    x: Tensor,
    num_groups: int,
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over groups of channels (Wu, He 2018), as torch.nn.GroupNorm.

    x is (N, C, ...), weight and bias (C,).

    Raises:
        ShapeMismatch: num_groups does not divide C; a parameter or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    view = layout.by_group(x, num_groups, mask)
    per_channel = (*view.x.shape[1:3], 1)
    weight, bias = (layout.parameter(t, per_channel, x, n) for t, n in ((weight, "weight"), (bias, "bias")))
    y = reference.row_norm(view.x, view.kept, eps=eps, weight=weight, bias=bias, mask=view.mask)
    return y.reshape(x.shape)


def instance_norm(
    x: Tensor,
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over each channel of each sample, as torch.nn.InstanceNorm.

    After Ulyanov, Vedaldi, Lempitsky 2016: a group for each channel. x is (N, C, ...), weight and bias (C,).

    Raises:
        ShapeMismatch: x has no channels; a parameter or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    if x.dim() < 2:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected (N, C, ...)")
    return group_norm(x, x.shape[1], eps=eps, weight=weight, bias=bias, mask=mask)


def adaptive_instance_norm(
    x: Tensor, style_mean: Tensor, style_std: Tensor, *, eps: float = 1e-5, mask: Tensor | None = None
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * style_std + style_mean, over each channel of each sample (Huang, Belongie 2017).

    x is (N, C, ...); style_mean and style_std are (N, C), (1, C) or (C,), as `instance_statistics` gives.

    Raises:
        ShapeMismatch: x has no channels; the style or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    view = layout.by_group(x, x.shape[1] if x.dim() > 1 else 1, mask)
    weight, bias = _style(style_std, x, "style_std"), _style(style_mean, x, "style_mean")
    y = reference.row_norm(view.x, view.kept, eps=eps, weight=weight, bias=bias, mask=view.mask)
    return y.reshape(x.shape)


def instance_statistics(style: Tensor, *, eps: float = 1e-5, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and sqrt(population variance + eps) of each channel of each sample of a style (N, C, ...).

    Both are float64 (N, C).

    Raises:
        ShapeMismatch: the style has no channels; the mask does not fit.
        TooFewValues: a channel of a sample has no real value.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    view = layout.by_group(style, style.shape[1] if style.dim() > 1 else 1, mask)
    count, mean, var = reference.row_moments(view.x, view.kept, view.mask)
    if bool((count == 0).any()):
        raise TooFewValues("style", int((count == 0).nonzero()[0, 1]), 0, "at least one value in each channel")
    return mean, (var + eps).sqrt()


def _style(values: Tensor, x: Tensor, name: str) -> Tensor:
    """(N or 1, C, 1, 1), to fit (N, G = C, 1, L)."""
    channels = x.shape[1]
    samples = values.shape[0] if values.dim() == 2 else 1
    if values.dim() not in (1, 2) or values.shape[-1] != channels or samples not in (1, x.shape[0]):
        expected = f"[{x.shape[0]}, {channels}], [1, {channels}] or [{channels}]"
        raise ShapeMismatch(name, f".shape is {list(values.shape)}; expected {expected}")
    result = layout.parameter(values, (samples, channels, 1, 1), x, name)
    assert result is not None
    return result
