"""normcore: the engine of normstats. Tensors in, tensors out; no network, no disk, no clock, no random numbers.

`Moments` of batches form a commutative monoid; a policy of `running` turns batches into elements of one and composes
them; the functions of `normalize` apply statistics; `padding` and `layout` bring masks and axes into shape.
"""

from normcore import drift, errors, layout, moments, normalize, padding, running
from normcore.drift import Drift
from normcore.errors import (
    InvalidParameter,
    NoInverse,
    NonFinite,
    NormcoreError,
    NothingSeen,
    ShapeMismatch,
    TooFewValues,
)
from normcore.kernels.base import Launch, ToRange, ToUnit
from normcore.moments import Moments, NanPolicy, merge, merge_all, moments_of, pool, scale, variance, violations
from normcore.normalize.across import local_response_norm, lp_norm, mean_variance_norm
from normcore.normalize.channel import (
    batch_norm,
    batch_renorm,
    by_own_statistics,
    min_max,
    standardize,
    standardize_like,
    unmin_max,
    unstandardize,
)
from normcore.normalize.group import adaptive_instance_norm, group_norm, instance_norm, instance_statistics
from normcore.normalize.ragged import ragged_row_norm
from normcore.normalize.row import layer_norm, layer_norm_like, rms_norm, rms_norm_like
from normcore.running import Arrival, BatchAverage, BatchEma, Cumulative, Estimate, Running, RunningPolicy, TimeEma
from normcore.stack import MomentsStack

__all__ = [
    "Arrival",
    "BatchAverage",
    "BatchEma",
    "Cumulative",
    "Drift",
    "Estimate",
    "InvalidParameter",
    "Launch",
    "Moments",
    "MomentsStack",
    "NanPolicy",
    "NoInverse",
    "NonFinite",
    "NormcoreError",
    "NothingSeen",
    "Running",
    "RunningPolicy",
    "ShapeMismatch",
    "TimeEma",
    "ToRange",
    "ToUnit",
    "TooFewValues",
    "adaptive_instance_norm",
    "batch_norm",
    "batch_renorm",
    "by_own_statistics",
    "drift",
    "errors",
    "group_norm",
    "instance_norm",
    "instance_statistics",
    "layer_norm",
    "layer_norm_like",
    "layout",
    "local_response_norm",
    "lp_norm",
    "mean_variance_norm",
    "merge",
    "merge_all",
    "min_max",
    "moments",
    "moments_of",
    "normalize",
    "padding",
    "pool",
    "ragged_row_norm",
    "rms_norm",
    "rms_norm_like",
    "running",
    "scale",
    "standardize",
    "standardize_like",
    "unmin_max",
    "unstandardize",
    "variance",
    "violations",
]
