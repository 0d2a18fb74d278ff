"""One normalization as the engine runs it: a spec, its statistics and a tensor go in, a tensor and moments come out.

Pure, and called on compute threads: nothing here knows of names, requests or the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

import normcore
from normcore import layout, padding
from normcore.errors import InvalidParameter
from normcore.kernels.base import output_dtype
from normcore.moments import Moments, moments_of, variance
from normcore.running import Estimate
from normserver.records import parameter_bytes
from normstats import specs

MAX_GHOST_BATCHES = 1024

# Statistics are kept and merged there, wherever the device is that took them.
CPU = torch.device("cpu")
# Parts of kept memory begin at a cache line.
_ALIGNED = 64


class Mode(Enum):
    """Which statistics a normalization uses."""

    EVAL = "eval"
    BATCH = "batch"
    TRAIN = "train"


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How to normalize: all that does not change from one chunk of a tensor to the next. Equal is what is the same.

    `estimate` holds the running statistics where the mode is EVAL or batch renormalization looks at them; `moments`
    those of the whole batch, where it comes in chunks; `style` the mean and deviation of an AdaptiveInstanceNorm.
    """

    spec: specs.Spec
    mode: Mode
    inverse: bool = False
    estimate: Estimate | None = None
    moments: Moments | None = None
    style: tuple[Tensor, Tensor] | None = None
    # What of it decides how long it takes.
    costs: tuple[Hashable, ...] = field(init=False)

    def __post_init__(self) -> None:
        told = (str(getattr(self.spec, name, "")) for name in ("virtual_batch_size", "size", "p", "axis", "axes"))
        object.__setattr__(self, "costs", (type(self.spec), self.mode, self.inverse, *told))

    @property
    def size_bytes(self) -> int:
        """What its arrays take in memory."""
        kept = [*(self.style or ()), *(() if self.moments is None else (self.moments.values,))]
        if (found := self.estimate) is not None:
            kept += [found.mean, found.var, found.min, found.max, found.count]
        size: int = sum(one.nbytes for one in kept)
        return parameter_bytes(self.spec) + size


@dataclass(frozen=True, eq=False, slots=True)
class Resolved:
    """A plan, and the version of the statistics in it: 0 without a normalizer."""

    plan: Plan
    version: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A tensor, and which of its elements are real."""

    x: Tensor
    lengths: Tensor | None = None
    mask: Tensor | None = None
    sample_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Normalized:
    """The output, and the batch's own moments, one of each ghost batch, where they were taken; those on the CPU."""

    y: Tensor
    batches: Sequence[Moments] = ()


def normalize(plan: Plan, batch: Batch, device: torch.device, out: Tensor | None = None) -> Normalized:
    """Normalize a batch, into `out`, which lies on the CPU, if it is given.

    Raises:
        NormcoreError: shape, padding or values do not fit the spec.
    """
    x, mask = batch.x.to(device), _mask(plan.spec, batch, device)
    if out is None or device == CPU:
        return _normalize(plan, x, mask, out)
    found = _normalize(plan, x, mask, None)
    return replace(found, y=out.copy_(found.y))


def _normalize(plan: Plan, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Normalized:
    match plan.spec:
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax() if plan.mode is Mode.EVAL:
            assert plan.estimate is not None, "EVAL has running statistics, or was refused"
            return Normalized(_by_running(plan.spec, plan.estimate, x, mask, out, plan.inverse))
        case specs.BatchNorm() if plan.moments is None:
            return _batch_norm(plan, plan.spec, x, mask, out)
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax():
            return _by_own(plan, plan.spec, x, mask, out)
        case specs.AdaptiveInstanceNorm(eps=eps):
            assert plan.style is not None, "the service asks for a style"
            mean, std = (part.to(x.device) for part in plan.style)
            return Normalized(normcore.adaptive_instance_norm(x, mean, std, eps=eps, mask=mask, out=out))
    return Normalized(_by_sample(plan.spec, x, mask, out))


def like(plan: Plan, x: Tensor) -> normcore.Launch | None:
    """`normalize` on the CPU, made ready for batches of x's shape and dtype without padding; None where none is made.

    x is dense and not empty, and was normalized by that plan before.
    """
    match plan.spec:
        case specs.LayerNorm(normalized_shape=sizes, eps=eps, weight=weight, bias=bias):
            return normcore.layer_norm_like(x, sizes, eps=eps, weight=_parameter(weight), bias=_parameter(bias))
        case specs.RMSNorm(normalized_shape=sizes, eps=eps, weight=weight):
            return normcore.rms_norm_like(x, sizes, eps=eps, weight=_parameter(weight))
        case specs.BatchNorm() | specs.Standardize() if plan.mode is Mode.EVAL and not plan.inverse:
            assert plan.estimate is not None, "EVAL has running statistics, or was refused"
            return normcore.standardize_like(x, plan.estimate.mean, plan.estimate.var, **_affine(plan.spec))
        case specs.BatchNorm() | specs.Standardize() if plan.moments is not None:
            return normcore.standardize_like(x, plan.moments.mean, variance(plan.moments), **_affine(plan.spec))
    return None


def spans_rows(plan: Plan) -> bool:
    """Whether a row's output depends on the other rows: slices of axis 0."""
    match plan.spec:
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax():
            return plan.mode is not Mode.EVAL and plan.moments is None
        case specs.MeanVarianceNorm(axes=axes):
            return 0 in axes or min(axes) < 0
        case specs.LpNorm(axis=axis):
            return axis <= 0
    return False


def kind_of(plan: Plan, batch: Batch) -> Hashable | None:
    """Batches of equal kinds can be normalized together, with the results that each has alone; None goes alone.

    They are by one plan, and their rows are independent and of one shape; how many rows and which lengths may differ.
    """
    if batch.mask is not None or batch.sample_weights is not None:
        return None
    if batch.lengths is not None and len(batch.lengths) != len(batch.x):
        return None  # it is refused, and not by way of others' lengths
    rows = row_shape(plan, tuple(batch.x.shape), lengths=batch.lengths is not None)
    return None if rows is None else (plan, batch.x.dtype, rows, batch.lengths is not None)


def normalize_together(
    plan: Plan, batches: Sequence[Batch], device: torch.device, memory: Callable[[int], Tensor]
) -> list[Tensor]:
    """Normalize batches of one kind in one launch, out of and into memory of so many bytes, uint8.

    Raises:
        NormcoreError: one of them does not fit the spec.
    """
    rows = row_shape(plan, tuple(batches[0].x.shape), lengths=batches[0].lengths is not None)
    assert rows is not None, "what goes alone has no kind"
    parts = [batch.x.reshape(-1, *rows) for batch in batches]
    sizes = [len(part) for part in parts]
    shape = (sum(sizes), *rows)
    half = -(-math.prod(shape) * 8 // _ALIGNED) * _ALIGNED  # no element is larger
    arena = memory(2 * half)
    whole = torch.cat(parts, out=tensor_in(arena, parts[0].dtype, shape))
    lengths = [batch.lengths for batch in batches if batch.lengths is not None]
    out = tensor_in(arena[half:], output_dtype(whole), shape) if device == CPU else None
    y = normalize(plan, Batch(whole, torch.cat(lengths) if lengths else None), device, out).y.to(CPU)
    return [part.reshape(batch.x.shape) for part, batch in zip(torch.split(y, sizes), batches, strict=True)]


def row_shape(plan: Plan, shape: tuple[int, ...], *, lengths: bool = False) -> tuple[int, ...] | None:
    """The shape of a batch's rows, once it is seen as so many; None if they depend on each other, or it is empty.

    `lengths` says whether its samples are padded: then they are its rows.
    """
    spec = plan.spec
    if not math.prod(shape) or spans_rows(plan):
        return None
    match spec:
        case specs.LayerNorm() | specs.RMSNorm() if not lengths:
            sizes = spec.normalized_shape
            trailing = (sizes,) if isinstance(sizes, int) else tuple(sizes)
            return trailing if shape[-len(trailing) :] == trailing else None
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax():
            if spec.channel_axis == -1 and not lengths:
                return shape[-1:] or None
            if not shape or spec.channel_axis % len(shape) == 0:
                return None
        case specs.AdaptiveInstanceNorm():
            return None  # each sample may have a style of its own
    return shape[1:] or None


def tensor_in(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor at the beginning of some memory, uint8."""
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def moments(spec: specs.RunningSpec, batch: Batch, device: torch.device) -> list[Moments]:
    """The moments of a batch, one of each ghost batch, as a contribution to a normalizer of this spec.

    Raises:
        NormcoreError: shape, padding, weights or values do not fit the spec.
    """
    x, mask, weights = batch.x.to(device), _mask(spec, batch, device), batch.sample_weights
    size = spec.virtual_batch_size if isinstance(spec, specs.BatchNorm) else None
    samples = x.shape[0] if x.dim() else 1
    _check_ghosts(samples, size)
    if mask is not None and samples:
        mask = mask.expand(samples, *mask.shape[1:])
    rows = [slice(start, start + size) for start in range(0, samples, size)] if size else [slice(None)]
    return [
        moments_of(
            x[some] if size else x,
            spec.channel_axis,
            num_features=spec.num_features,
            mask=None if mask is None else mask[some],
            weights=None if weights is None else weights[some],
            nan_policy=spec.nan_policy,
        ).to(CPU)
        for some in rows
    ]


def style_of(spec: specs.AdaptiveInstanceNorm, style: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and deviation of each channel of each sample of a style."""
    return normcore.instance_statistics(style, eps=spec.eps)


def channel_axis_of(spec: specs.Spec) -> int | None:
    """The axis that padding does not run along, where the normalization has one."""
    match spec:
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax():
            return spec.channel_axis
        case specs.GroupNorm() | specs.InstanceNorm() | specs.AdaptiveInstanceNorm() | specs.LocalResponseNorm():
            return 1
        case specs.MeanVarianceNorm(axes=axes):
            return None if 1 in axes else 1
    return None


def _mask(spec: specs.Spec, batch: Batch, device: torch.device) -> Tensor | None:
    mask = padding.to_mask(batch.x, lengths=batch.lengths, mask=batch.mask, channel_axis=channel_axis_of(spec))
    return None if mask is None else mask.to(device)


def _by_running(
    spec: specs.RunningSpec, estimate: Estimate, x: Tensor, mask: Tensor | None, out: Tensor | None, inverse: bool
) -> Tensor:
    """By running statistics, or back."""
    if isinstance(spec, specs.MinMax):
        return _min_max(spec, estimate.min, estimate.max, x, mask, out, inverse)
    return _standardize(spec, estimate.mean, estimate.var, x, mask, out, inverse)


def _by_moments(
    spec: specs.RunningSpec, of_batch: Moments, x: Tensor, mask: Tensor | None, out: Tensor | None
) -> Tensor:
    """By a batch's own moments."""
    if isinstance(spec, specs.MinMax):
        return _min_max(spec, of_batch.min, of_batch.max, x, mask, out)
    return _standardize(spec, of_batch.mean, variance(of_batch), x, mask, out)


def _min_max(
    spec: specs.MinMax,
    low: Tensor,
    high: Tensor,
    x: Tensor,
    mask: Tensor | None,
    out: Tensor | None,
    inverse: bool = False,
) -> Tensor:
    common: dict[str, Any] = {"channel_axis": spec.channel_axis, "mask": mask, "out": out}
    if inverse:
        return normcore.unmin_max(x, low, high, feature_range=spec.feature_range, **common)
    return normcore.min_max(x, low, high, feature_range=spec.feature_range, clip=spec.clip, **common)


def _standardize(
    spec: specs.BatchNorm | specs.Standardize,
    mean: Tensor,
    var: Tensor,
    x: Tensor,
    mask: Tensor | None,
    out: Tensor | None,
    inverse: bool = False,
) -> Tensor:
    common = _affine(spec) | {"mask": mask, "out": out}
    if inverse:
        del common["clip"]
        return normcore.unstandardize(x, mean, var, **common)
    return normcore.standardize(x, mean, var, **common)


def _affine(spec: specs.BatchNorm | specs.Standardize) -> dict[str, Any]:
    """What of a spec standardizing goes by, beside statistics."""
    weight, bias = (_parameter(getattr(spec, name, None)) for name in ("weight", "bias"))
    clip = spec.clip if isinstance(spec, specs.Standardize) else None
    return {"eps": spec.eps, "weight": weight, "bias": bias, "clip": clip, "channel_axis": spec.channel_axis}


def _batch_norm(plan: Plan, spec: specs.BatchNorm, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Normalized:
    """By the batch's own statistics; in TRAIN mode with the moments, which must then be fit to be contributed."""
    common: dict[str, Any] = {"eps": spec.eps, "weight": _parameter(spec.weight), "bias": _parameter(spec.bias)}
    common |= {"channel_axis": spec.channel_axis, "mask": mask, "nan_policy": _nan_policy(plan), "out": out}
    if spec.renorm is not None and plan.estimate is not None:
        r_max, d_max = spec.renorm
        running = plan.estimate
        y, own = normcore.batch_renorm(x, running.mean, running.var, r_max=r_max, d_max=d_max, **common)
        return Normalized(y, (own.to(CPU),))
    _check_ghosts(x.shape[0] if x.dim() else 1, spec.virtual_batch_size)
    y, batches = normcore.batch_norm(
        x, num_features=spec.num_features, virtual_batch_size=spec.virtual_batch_size, **common
    )
    return Normalized(y, [own.to(CPU) for own in batches])


def _by_own(plan: Plan, spec: specs.RunningSpec, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Normalized:
    """By the moments that came with the plan, or are taken now."""
    if plan.moments is not None:
        return Normalized(_by_moments(spec, plan.moments, x, mask, out))
    y, own = normcore.by_own_statistics(
        x,
        _rule(spec),
        channel_axis=spec.channel_axis,
        num_features=spec.num_features,
        mask=mask,
        nan_policy=_nan_policy(plan),
        out=out,
    )
    return Normalized(y, (own.to(CPU),))


def _rule(spec: specs.RunningSpec) -> normcore.ToUnit | normcore.ToRange:
    """What a spec makes of a batch's own statistics."""
    if isinstance(spec, specs.MinMax):
        return normcore.ToRange(*spec.feature_range, clip=spec.clip)
    assert isinstance(spec, specs.Standardize), "batch norm has a way of its own"
    return normcore.ToUnit(spec.eps, clip=math.inf if spec.clip is None else spec.clip)


def _check_ghosts(samples: int, size: int | None) -> None:
    """Each ghost batch is a pass of its own: a tensor may not ask for millions."""
    if size is not None and samples > size * MAX_GHOST_BATCHES:
        raise InvalidParameter(
            "x", f"has {samples} samples, more than {MAX_GHOST_BATCHES} ghost batches of {size}; send fewer at a time"
        )


def _nan_policy(plan: Plan) -> normcore.NanPolicy:
    """What is not contributed may be NaN, and then is NaN in the output too."""
    assert isinstance(plan.spec, specs.RunningSpec), "only these have a policy"
    return "propagate" if plan.mode is Mode.BATCH and plan.spec.nan_policy == "reject" else plan.spec.nan_policy


def _by_sample(spec: specs.Spec, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Tensor:
    """By statistics of each sample alone, or of none."""
    common: dict[str, Any] = {"mask": mask, "out": out}
    match spec:
        case specs.LayerNorm():
            weight, bias = _parameter(spec.weight), _parameter(spec.bias)
            return normcore.layer_norm(x, spec.normalized_shape, eps=spec.eps, weight=weight, bias=bias, **common)
        case specs.RMSNorm():
            return normcore.rms_norm(x, spec.normalized_shape, eps=spec.eps, weight=_parameter(spec.weight), **common)
        case specs.GroupNorm():
            layout.check_features(x, spec.num_channels, 1)
            weight, bias = _parameter(spec.weight), _parameter(spec.bias)
            return normcore.group_norm(x, spec.num_groups, eps=spec.eps, weight=weight, bias=bias, **common)
        case specs.InstanceNorm():
            layout.check_features(x, spec.num_features, 1)
            weight, bias = _parameter(spec.weight), _parameter(spec.bias)
            return normcore.instance_norm(x, eps=spec.eps, weight=weight, bias=bias, **common)
        case specs.MeanVarianceNorm():
            return normcore.mean_variance_norm(x, spec.axes, eps=spec.eps, **common)
        case specs.LpNorm():
            return normcore.lp_norm(x, spec.p, spec.axis, eps=spec.eps, **common)
        case specs.LocalResponseNorm():
            return normcore.local_response_norm(x, spec.size, alpha=spec.alpha, beta=spec.beta, k=spec.k, **common)
    raise AssertionError(f"{type(spec).__name__} has statistics of its own")


_PARAMETERS: dict[int, tuple[Any, Tensor]] = {}
_MOST_PARAMETERS, _LARGEST_PARAMETER_BYTES = 256, 1 << 16


def _parameter(values: Any) -> Tensor | None:
    """A spec's array as a tensor, made once while the same spec comes again."""
    if values is None:
        return None
    known = _PARAMETERS.get(id(values))
    if known is None or known[0] is not values:
        if values.nbytes > _LARGEST_PARAMETER_BYTES:
            return torch.from_numpy(np.array(values))
        if len(_PARAMETERS) >= _MOST_PARAMETERS:
            _PARAMETERS.clear()
        known = _PARAMETERS[id(values)] = values, torch.from_numpy(np.array(values))
    return known[1]
