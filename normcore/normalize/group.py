"""Each sample over groups of its channels, or over each channel; channels are axis 1 throughout."""

from __future__ import annotations

from torch import Tensor

from normcore import layout
from normcore.errors import ShapeMismatch, TooFewValues
from normcore.kernels import launch
from normcore.kernels.base import COUNT, M2, MEAN
from normcore.layout import RowView


def group_norm(
    x: Tensor,
    num_groups: int,
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over groups of channels (Wu, He 2018), as torch.nn.GroupNorm.

    x is (N, C, ...), weight and bias (C,).

    Raises:
        ShapeMismatch: num_groups does not divide C; a parameter or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    layout.check_eps(eps)
    view = layout.by_group(x, num_groups, mask)
    channels = x.shape[1]
    weight, bias = layout.affine(weight, bias, channels, x)
    per = (num_groups, channels // num_groups)
    return _by_row(view, eps, weight, bias, per, out)


def instance_norm(
    x: Tensor,
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over each channel of each sample, as torch.nn.InstanceNorm.

    After Ulyanov, Vedaldi, Lempitsky 2016: a group for each channel. x is (N, C, ...), weight and bias (C,).

    Raises:
        ShapeMismatch: x has no channels; a parameter or the mask does not fit.
        InvalidParameter: eps is out of range.
    """
    if x.dim() < 2:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected (N, C, ...)")
    return group_norm(x, x.shape[1], eps=eps, weight=weight, bias=bias, mask=mask, out=out)


def adaptive_instance_norm(
    x: Tensor,
    style_mean: Tensor,
    style_std: Tensor,
    *,
    eps: float = 1e-5,
    mask: Tensor | None = None,
    out: Tensor | None = None,
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
    if weight.shape[0] != bias.shape[0]:
        weight, bias = (one.expand(x.shape[0], -1).contiguous() for one in (weight, bias))
    return _by_row(view, eps, weight, bias, (weight.numel(), 1), out)


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
    each = None if view.mask is None else view.mask[None]
    values = launch.channel_moments(view.x, (1, *view.shape), each).values
    count, mean, m2 = (values[row].reshape(style.shape[:2]) for row in (COUNT, MEAN, M2))
    if bool((count == 0).any()):
        raise TooFewValues("style", int((count == 0).nonzero()[0, 1]), 0, "at least one value in each channel")
    return mean, (m2 / count + eps).sqrt()


def _by_row(
    view: RowView, eps: float, weight: Tensor | None, bias: Tensor | None, per: tuple[int, int], out: Tensor | None
) -> Tensor:
    into = layout.target(out, view.x)
    y = launch.row_norm(view.x, view.shape, eps=eps, weight=weight, bias=bias, per=per, mask=view.mask, out=into)
    return layout.delivered(y, out)


def _style(values: Tensor, x: Tensor, name: str) -> Tensor:
    """float64 (N or 1, C)."""
    channels = x.shape[1]
    samples = values.shape[0] if values.dim() == 2 else 1
    if values.dim() not in (1, 2) or values.shape[-1] != channels or samples not in (1, x.shape[0]):
        expected = f"[{x.shape[0]}, {channels}], [1, {channels}] or [{channels}]"
        raise ShapeMismatch(name, f".shape is {list(values.shape)}; expected {expected}")
    return layout.per_channel(values, samples * channels, x, name).reshape(samples, channels)
