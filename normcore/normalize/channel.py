"""Each channel by one mean and scale: its running statistics, or the batch's own."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import torch
from torch import Tensor

from normcore import layout
from normcore.errors import InvalidParameter, NoInverse, ShapeMismatch
from normcore.kernels import launch
from normcore.kernels.base import Coefficients, Launch, Rule, ToUnit, output_dtype
from normcore.moments import Moments, NanPolicy, check, moments_found, moments_of, variance


def standardize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    clip: float | None = None,
    channel_axis: int,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, clipped to plus and minus `clip`; mean, var, weight, bias are (C,).

    Raises:
        ShapeMismatch: x has another number of channels, or a parameter of values.
        InvalidParameter: eps or clip is out of range.
    """
    view, by = _standardizing(x, mean, var, eps, weight, bias, clip, channel_axis, mask)
    return layout.delivered(launch.standardize(view.x, view.shape, *by, view.mask, layout.target(out, view.x)), out)


def standardize_like(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    clip: float | None = None,
    channel_axis: int,
) -> Launch | None:
    """`standardize`, made ready for tensors of x's shape and dtype that are dense: see normcore.kernels.base.Launch.

    None where nothing is gained by that. What is checked is checked once.

    Raises:
        ShapeMismatch, InvalidParameter: as `standardize`.
    """
    view, by = _standardizing(x, mean, var, eps, weight, bias, clip, channel_axis, None)
    return launch.standardize_like(view.x, view.shape, *by)


def _standardizing(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    clip: float | None,
    channel_axis: int,
    mask: Tensor | None,
) -> tuple[layout.ChannelView, tuple[Tensor, Tensor, float, Tensor | None, Tensor | None, float]]:
    """x as kernels see it, and the rest of what they take."""
    if clip is not None and not clip > 0:
        raise InvalidParameter("clip", f"is {clip!r}; expected a number above 0, or None")
    layout.check_eps(eps)
    channels = mean.numel()
    mean, var = layout.per_channel(mean, channels, x, "mean"), layout.per_channel(var, channels, x, "var")
    weight, bias = layout.affine(weight, bias, channels, x)
    view = layout.by_channel(x, channel_axis, channels, mask)
    return view, (mean, var, eps, weight, bias, inf if clip is None else clip)


def unstandardize(
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channel_axis: int,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The inverse of `standardize`, but for what clipping lost: (y - bias) / weight * sqrt(var + eps) + mean.

    Raises:
        NoInverse: a weight is 0.
        ShapeMismatch: y has another number of channels, or a parameter of values.
        InvalidParameter: eps is out of range.
    """
    std, weight, bias = _deviation(var, eps), _or_ones(weight, mean, "weight"), _or_zeros(bias, mean, "bias")
    if bool((weight == 0).any()):
        raise NoInverse("weight", int((weight == 0).nonzero()[0]))
    return _apply(y, _by(y, bias, weight, torch.where(std == 0, 1.0, std), mean), channel_axis, mask, out)


def min_max(
    x: Tensor,
    min: Tensor,
    max: Tensor,
    *,
    feature_range: tuple[float, float] = (0.0, 1.0),
    clip: bool = False,
    channel_axis: int,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - min) / (max - min) mapped onto feature_range, and kept within it if `clip`; min and max are (C,).

    The range of a constant feature is taken as 1, as in scikit-learn's MinMaxScaler.

    Raises:
        ShapeMismatch: x has another number of channels.
        InvalidParameter: feature_range is not finite and increasing.
    """
    low, high = _feature_range(feature_range)
    factor, shift = torch.full_like(min, high - low), torch.full_like(min, low)
    bounds = (low, high) if clip else (-inf, inf)
    return _apply(x, _by(x, min, max - min, factor, shift, *bounds), channel_axis, mask, out)


def unmin_max(
    y: Tensor,
    min: Tensor,
    max: Tensor,
    *,
    feature_range: tuple[float, float] = (0.0, 1.0),
    channel_axis: int,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The inverse of `min_max`, but for what clipping lost.

    Raises:
        ShapeMismatch: y has another number of channels.
        InvalidParameter: feature_range is not finite and increasing.
    """
    low, high = _feature_range(feature_range)
    divisor, offset = torch.full_like(min, high - low), torch.full_like(min, low)
    span = torch.where(max == min, 1.0, max - min)
    return _apply(y, _by(y, offset, divisor, span, min), channel_axis, mask, out)


def batch_norm(
    x: Tensor,
    *,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channel_axis: int = 1,
    num_features: int | None = None,
    mask: Tensor | None = None,
    virtual_batch_size: int | None = None,
    nan_policy: NanPolicy = "propagate",
    out: Tensor | None = None,
) -> tuple[Tensor, list[Moments]]:
    """Each channel by the batch's own mean and population variance, as torch.nn.BatchNorm in training; and the moments.

    With virtual_batch_size, consecutive chunks of that many samples (slices of axis 0) are batches of their own: ghost
    batches (Hoffer, Hubara, Soudry 2017). Their moments come in order, one of each.

    Raises:
        ShapeMismatch: x has another number of channels; a parameter or the mask does not fit.
        NonFinite: x has values that nan_policy rejects.
        InvalidParameter: eps or virtual_batch_size is out of range.
    """
    layout.check_eps(eps)
    view = layout.by_channel(x, channel_axis, num_features, mask)
    rule = ToUnit(eps, 0.0, *layout.affine(weight, bias, view.shape[1], x))
    if virtual_batch_size is None:
        y, moments = _by_own(x, view, rule, mask, nan_policy, out)
        return y, [moments]
    ghosts = _ghosts(x, mask, virtual_batch_size, layout.check_features(x, num_features, channel_axis))
    y = torch.empty_like(x, dtype=output_dtype(x), requires_grad=False) if out is None else out
    found, start = [], 0
    for part, real in ghosts:
        into = y[start : start + part.shape[0]]
        seen = layout.by_channel(part, channel_axis, num_features, real)
        found.append(_by_own(part, seen, rule, real, nan_policy, into)[1])
        start += part.shape[0]
    return y, found


def by_own_statistics(
    x: Tensor,
    rule: Rule,
    *,
    channel_axis: int,
    num_features: int | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    out: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Each channel by a rule from the batch's own statistics, `ToUnit` or `ToRange`, in one pass; and the moments.

    Raises:
        ShapeMismatch: x has another number of channels; a parameter or the mask does not fit.
        NonFinite: x has values that nan_policy rejects.
    """
    view = layout.by_channel(x, channel_axis, num_features, mask)
    return _by_own(x, view, rule, mask, nan_policy, out)


def batch_renorm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    r_max: float,
    d_max: float,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channel_axis: int = 1,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    out: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Batch renormalization (Ioffe 2017) toward running statistics `mean` and `var` (C,); and the batch's moments.

    y = ((x - m) / s * r + d) * weight + bias, with m, s the batch's mean and deviation, r = s / sqrt(var + eps) kept
    within [1 / r_max, r_max], d = (m - mean) / sqrt(var + eps) within [-d_max, d_max].

    Raises:
        ShapeMismatch: x has another number of channels; a parameter or the mask does not fit.
        NonFinite: x has values that nan_policy rejects.
        InvalidParameter: eps, r_max or d_max is out of range.
    """
    if not (r_max >= 1 and d_max >= 0):
        raise InvalidParameter("r_max", f"is {r_max!r} and d_max {d_max!r}; expected at least 1 and at least 0")
    moments = moments_of(x, channel_axis, num_features=mean.numel(), mask=mask, nan_policy=nan_policy)
    own, running = _deviation(variance(moments), eps), _deviation(var, eps).to(x.device)
    r = (own / running).clamp(1 / r_max, r_max)
    d = ((moments.mean - mean.to(moments.mean)) / running).clamp(-d_max, d_max)
    weight, bias = _or_ones(weight, moments.mean, "weight"), _or_zeros(bias, moments.mean, "bias")
    by = Coefficients.of(moments.mean, moments.mean_low, own, r * weight, d * weight + bias)
    return _apply(x, by, channel_axis, mask, out), moments


def _by_own(
    x: Tensor,
    view: layout.ChannelView,
    rule: Rule,
    mask: Tensor | None,
    nan_policy: NanPolicy,
    out: Tensor | None,
) -> tuple[Tensor, Moments]:
    into = layout.target(out, view.x)
    if nan_policy != "propagate" and into is not None and into.data_ptr() == view.x.data_ptr():
        # What is refused must be left as it was: look before writing.
        check(launch.channel_moments(view.x, view.shape, view.mask, omit=nan_policy == "omit"), x, nan_policy, mask)
    y, found = launch.channel_norm(view.x, view.shape, rule, view.mask, into, omit=nan_policy == "omit")
    check(found, x, nan_policy, mask)
    return layout.delivered(y, out), moments_found(found)


def _ghosts(x: Tensor, mask: Tensor | None, size: int, axis: int) -> Sequence[tuple[Tensor, Tensor | None]]:
    """Chunks of consecutive samples, each with its part of the mask."""
    layout.check_mask(mask, x)
    if size < 1:
        raise InvalidParameter("virtual_batch_size", f"is {size}; expected at least 1")
    if axis == 0 and x.dim() > 1:
        raise ShapeMismatch("virtual_batch_size", "is in samples of axis 0, which is the channel axis")
    chunks = torch.split(x, size)
    if mask is None:
        return [(chunk, None) for chunk in chunks]
    return list(zip(chunks, torch.split(mask.expand(x.shape[0], *mask.shape[1:]), size), strict=True))


def _by(
    x: Tensor, offset: Tensor, divisor: Tensor, factor: Tensor, shift: Tensor, low: float = -inf, high: float = inf
) -> Coefficients:
    """Coefficients of tensors of any one shape, with no low word."""
    values = torch.stack((offset, torch.zeros_like(offset), divisor, factor, shift)).detach()
    return Coefficients(values.to(x.device, torch.float64).reshape(5, -1), low, high)


def _apply(x: Tensor, by: Coefficients, channel_axis: int, mask: Tensor | None, out: Tensor | None) -> Tensor:
    """x in its own layout by coefficients of its channels."""
    view = layout.by_channel(x, channel_axis, by.values.shape[1], mask)
    y = launch.channel_apply(view.x, view.shape, by, view.mask, layout.target(out, view.x))
    return layout.delivered(y, out)


def _deviation(var: Tensor, eps: float) -> Tensor:
    layout.check_eps(eps)
    return (var.detach().double() + eps).sqrt()


def _or_ones(weight: Tensor | None, like: Tensor, name: str) -> Tensor:
    if weight is None:
        return torch.ones_like(like, dtype=torch.float64)
    return layout.per_channel(weight, like.numel(), like, name).reshape(like.shape)


def _or_zeros(bias: Tensor | None, like: Tensor, name: str) -> Tensor:
    if bias is None:
        return torch.zeros_like(like, dtype=torch.float64)
    return layout.per_channel(bias, like.numel(), like, name).reshape(like.shape)


def _feature_range(feature_range: tuple[float, float]) -> tuple[float, float]:
    low, high = feature_range
    if not (isfinite(low) and isfinite(high) and low < high):
        raise InvalidParameter("feature_range", f"is {feature_range!r}; expected (min, max), finite, min < max")
    return float(low), float(high)
