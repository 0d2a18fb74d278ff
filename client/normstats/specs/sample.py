"""The normalizations whose statistics are each sample's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from normstats.specs.base import SpecBase, check, check_eps, check_parameter, check_positive_int

# The work of local response normalization grows with it; AlexNet's is 5.
MAX_NEIGHBOURS = 256


@dataclass(frozen=True, eq=False)
class LayerNorm(SpecBase):
    """Each sample over its trailing axes (Ba et al. 2016), as torch.nn.LayerNorm.

    Args:
        normalized_shape: the trailing axes' sizes, or the size of the last axis.
        eps: added to the variance.
        weight, bias: scale and shift, one value per element of normalized_shape; 1 and 0 if not given.
    """

    normalized_shape: int | Sequence[int]
    eps: float = 1e-5
    weight: Any = None
    bias: Any = None

    def __post_init__(self) -> None:
        size = _shape(self)
        check_eps(self)
        check_parameter(self, "weight", size)
        check_parameter(self, "bias", size)


@dataclass(frozen=True, eq=False)
class RMSNorm(SpecBase):
    """Each sample divided by the root mean square of its trailing axes (Zhang, Sennrich 2019), as torch.nn.RMSNorm.

    Args:
        normalized_shape: the trailing axes' sizes, or the size of the last axis.
        eps: added to the mean square; None for the machine epsilon of the input's type, as in torch.
        weight: scale, one value per element of normalized_shape; 1 if not given.
    """

    normalized_shape: int | Sequence[int]
    eps: float | None = None
    weight: Any = None

    def __post_init__(self) -> None:
        size = _shape(self)
        if self.eps is not None:
            check_eps(self)
        check_parameter(self, "weight", size)


@dataclass(frozen=True, eq=False)
class GroupNorm(SpecBase):
    """Groups of channels of each sample (Wu, He 2018), as torch.nn.GroupNorm; channels are axis 1.

    Args:
        num_groups: divides num_channels.
        num_channels: the number of channels, C.
        eps: added to the variance.
        weight, bias: scale and shift, C values each; 1 and 0 if not given.
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    weight: Any = None
    bias: Any = None

    def __post_init__(self) -> None:
        check_positive_int(self, "num_groups", "num_channels")
        check_eps(self)
        check(
            self.num_channels % self.num_groups == 0,
            "num_groups",
            f"is {self.num_groups}; expected a divisor of num_channels = {self.num_channels}",
        )
        check_parameter(self, "weight", self.num_channels)
        check_parameter(self, "bias", self.num_channels)


@dataclass(frozen=True, eq=False)
class InstanceNorm(SpecBase):
    """Each channel of each sample (Ulyanov et al. 2016), as torch.nn.InstanceNorm1d, 2d and 3d; channels are axis 1.

    Args:
        num_features: the number of channels, C.
        eps: added to the variance.
        weight, bias: scale and shift, C values each; 1 and 0 if not given.
    """

    num_features: int
    eps: float = 1e-5
    weight: Any = None
    bias: Any = None

    def __post_init__(self) -> None:
        check_positive_int(self, "num_features")
        check_eps(self)
        check_parameter(self, "weight", self.num_features)
        check_parameter(self, "bias", self.num_features)


@dataclass(frozen=True, eq=False)
class AdaptiveInstanceNorm(SpecBase):
    """Each channel of each sample takes the mean and deviation of a style (Huang, Belongie 2017); channels are axis 1.

    The style, a tensor or a normalizer's name, is given with each call.

    Args:
        eps: added to both variances.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_eps(self)


@dataclass(frozen=True, eq=False)
class MeanVarianceNorm(SpecBase):
    """(x - mean) / (deviation + eps) over any axes: ONNX's MeanVarianceNormalization.

    Args:
        axes: the axes that are averaged over.
        eps: added to the deviation.
    """

    axes: Sequence[int] = (0, 2, 3)
    eps: float = 1e-9

    def __post_init__(self) -> None:
        axes = tuple(int(axis) for axis in self.axes)
        check(
            1 <= len(axes) <= 8 and len(set(axes)) == len(axes) and all(-8 <= axis < 8 for axis in axes),
            "axes",
            f"is {axes!r}; expected 1 to 8 different axes",
        )
        object.__setattr__(self, "axes", axes)
        check_eps(self)


@dataclass(frozen=True, eq=False)
class LpNorm(SpecBase):
    """x / max(norm, eps), the p-norm taken along an axis, as torch.nn.functional.normalize.

    Args:
        p: the order, above 0; math.inf for the largest magnitude.
        axis: the axis.
        eps: the norm is taken to be at least this.
    """

    p: float = 2.0
    axis: int = 1
    eps: float = 1e-12

    def __post_init__(self) -> None:
        check(self.p > 0, "p", f"is {self.p!r}; expected a number above 0, or infinity")
        check(-8 <= self.axis < 8, "axis", f"is {self.axis!r}; expected an axis, from -8 to 7")
        check_eps(self)
        object.__setattr__(self, "p", float(self.p))


@dataclass(frozen=True, eq=False)
class LocalResponseNorm(SpecBase):
    """x / (k + alpha/size * sum of squares of `size` neighbouring channels) ** beta, as torch.nn.LocalResponseNorm.

    For even sizes torch takes one channel more before than after, ONNX one more after; this is torch's way.

    Args:
        size: how many channels, at most 256.
        alpha, beta, k: the factor, the exponent, the constant.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __post_init__(self) -> None:
        check_positive_int(self, "size")
        check(self.size <= MAX_NEIGHBOURS, "size", f"is {self.size}; expected at most {MAX_NEIGHBOURS} channels")
        for name in ("alpha", "beta", "k"):
            check(
                math.isfinite(getattr(self, name)),
                name,
                f"is {getattr(self, name)!r}; expected a finite number",
            )
        check(self.k > 0, "k", f"is {self.k!r}; expected a number above 0")
        check(self.alpha >= 0, "alpha", f"is {self.alpha!r}; expected at least 0")


def _shape(spec: Any) -> int:
    shape = spec.normalized_shape
    shape = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    check(
        1 <= len(shape) <= 8 and all(1 <= size < 2**31 for size in shape),
        "normalized_shape",
        f"is {shape!r}; expected 1 to 8 sizes of at least 1",
    )
    object.__setattr__(spec, "normalized_shape", shape)
    return math.prod(shape)
