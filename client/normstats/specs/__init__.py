"""What a normalization computes: one frozen description per kind, checked once, when it is made.

Names and arguments follow torch.nn where torch has them. Arrays may be numpy arrays, torch tensors or sequences; they
are kept as float64, which holds every value of the narrower types exactly.
"""

from __future__ import annotations

from normstats.specs.base import Array, InvalidSpec, float64_array
from normstats.specs.running import BatchNorm, MinMax, NanPolicy, RunningSpec, Standardize
from normstats.specs.sample import (
    AdaptiveInstanceNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    LpNorm,
    MeanVarianceNorm,
    RMSNorm,
)

SampleSpec = (
    LayerNorm
    | RMSNorm
    | GroupNorm
    | InstanceNorm
    | AdaptiveInstanceNorm
    | MeanVarianceNorm
    | LpNorm
    | LocalResponseNorm
)
Spec = RunningSpec | SampleSpec


def keeps_statistics(spec: Spec) -> bool:
    """Whether a normalizer of this spec has running statistics."""
    return isinstance(spec, RunningSpec)


__all__ = [
    "AdaptiveInstanceNorm",
    "Array",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "InvalidSpec",
    "LayerNorm",
    "LocalResponseNorm",
    "LpNorm",
    "MeanVarianceNorm",
    "MinMax",
    "NanPolicy",
    "RMSNorm",
    "RunningSpec",
    "SampleSpec",
    "Spec",
    "Standardize",
    "float64_array",
    "keeps_statistics",
]
