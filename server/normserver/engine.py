"""One normalization as the engine runs it: a spec, its statistics and a tensor go in, a tensor and moments come out.

Pure, and called on compute threads: nothing here knows of names, requests or the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from normcore.running import Estimate
from normstats import specs
from torch import Tensor

import normcore
from normcore.moments import Moments, moments_of


class Mode(Enum):
    """Which statistics a normalization uses."""

    EVAL = "eval"
    BATCH = "batch"
    TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to normalize: all that does not change from one chunk of a tensor to the next.

    `estimate` holds the running statistics where the mode is EVAL or batch renormalization looks at them; `moments`
    those of the whole batch, where it comes in chunks; `style` the mean and deviation of an AdaptiveInstanceNorm.
    """

    spec: specs.Spec
    mode: Mode
    inverse: bool = False
    estimate: Estimate | None = None
    moments: Moments | None = None
    style: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A tensor, and which of its elements are real."""

    x: Tensor
    lengths: Tensor | None = None
    mask: Tensor | None = None
    sample_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Normalized:
    """The output, and the batch's own moments, one of each ghost batch, where the mode is TRAIN."""

    y: Tensor
    batches: Sequence[Moments] = ()


def normalize(plan: Plan, batch: Batch, device: torch.device) -> Normalized:
    """Normalize a batch.

    Raises:
        NormcoreError: shape, padding or values do not fit the spec.
    """
    x = batch.x.to(device)
    mask = _mask(plan.spec, batch, device)
    match plan.spec:
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax() if plan.mode is Mode.EVAL:
            return Normalized(_by_running(plan.spec, plan.estimate, x, mask, plan.inverse))
        case specs.BatchNorm() if plan.moments is None:
            return _batch_norm(plan, plan.spec, x, mask)
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax():
            return _by_own(plan, plan.spec, x, mask)
        case specs.AdaptiveInstanceNorm(eps=eps):
            assert plan.style is not None, "the service asks for a style"
            mean, std = (part.to(device) for part in plan.style)
            return Normalized(normcore.adaptive_instance_norm(x, mean, std, eps=eps, mask=mask))
    return Normalized(_by_sample(plan.spec, x, mask))


def moments(spec: specs.RunningSpec, batch: Batch, device: torch.device) -> list[Moments]:
    """The moments of a batch, one of each ghost batch, as a contribution to a normalizer of this spec.

    Raises:
        NormcoreError: shape, padding, weights or values do not fit the spec.
    """
    mask = _mask(spec, batch, device)
    size = spec.virtual_batch_size if isinstance(spec, specs.BatchNorm) else None
    x, weights = batch.x.to(device), batch.sample_weights
    normcore.layout.check_features(x, spec.num_features, spec.channel_axis)
    starts = range(0, x.shape[0], size) if size else (0,)
    rows = [slice(start, start + size if size else None) for start in starts]
    return [
        moments_of(
            x[some],
            channel_axis=spec.channel_axis,
            mask=None if mask is None else mask[some] if mask.shape[0] > 1 else mask,
            weights=None if weights is None else weights[some],
            nan_policy=spec.nan_policy,
        )
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
