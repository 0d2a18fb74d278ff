"""What a normalization computes: one frozen description per kind, checked once, when it is made.

Names and arguments follow torch.nn where torch has them. Arrays may be numpy arrays, torch tensors or sequences; they
are kept as float64, which holds every value of the narrower types exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

NanPolicy = Literal["reject", "omit"]
Array = npt.NDArray[np.float64]


class InvalidSpec(ValueError):
    """A spec's argument is wrong.

    `argument` is its name; the sentence says what was received and what was expected.
    """

    def __init__(self, argument: str, sentence: str) -> None:
        super().__init__(f"{argument} {sentence}")
        self.argument = argument


def _check(condition: bool, argument: str, sentence: str) -> None:
    if not condition:
        raise InvalidSpec(argument, sentence)


def _positive_int(spec: Any, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        _check(
            isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31,
            name,
            f"is {value!r}; expected an integer from 1 to 2^31 - 1",
        )


def _eps(spec: Any) -> None:
    _check(
        math.isfinite(spec.eps) and spec.eps >= 0,
        "eps",
        f"is {spec.eps!r}; expected a finite number, at least 0",
    )


def float64_array(value: Any) -> Array:
    """A new read-only float64 array of a numpy array, torch tensor or sequence; any shape."""
    if hasattr(value, "detach"):  # a torch tensor, on whatever device and of whatever float type
        value = value.detach().cpu().double().numpy()
    array = np.array(value, dtype=np.float64)
    array.flags.writeable = False
    return array


def _parameter(spec: Any, name: str, size: int) -> None:
    value = getattr(spec, name)
    if value is None:
        return
    array = float64_array(value).reshape(-1)
    _check(array.size == size, name, f"has {array.size} values; expected {size}")
    _check(bool(np.isfinite(array).all()), name, "has values that are not finite")
    object.__setattr__(spec, name, array)


def _running(spec: Any) -> None:
    _positive_int(spec, "num_features")
    _check(
        isinstance(spec.channel_axis, int) and -8 <= spec.channel_axis < 8,
        "channel_axis",
        f"is {spec.channel_axis!r}; expected an axis, from -8 to 7",
    )
    _check(
        spec.nan_policy in ("reject", "omit"),
        "nan_policy",
        f"is {spec.nan_policy!r}; expected 'reject' or 'omit'",
    )
    _check(
        spec.freeze_after is None or (isinstance(spec.freeze_after, int) and 1 <= spec.freeze_after < 2**53),
        "freeze_after",
        f"is {spec.freeze_after!r}; expected a count of at least 1, or None",
    )


def _averaging(spec: Any) -> None:
    for name in ("momentum", "half_life"):
        if (value := getattr(spec, name)) is not None:
            object.__setattr__(spec, name, float(value))
    momentum = spec.momentum
    _check(
        momentum is None or 0 < momentum <= 1,
        "momentum",
        f"is {momentum!r}; expected the weight of the newest batch, 0 < momentum <= 1, or None",
    )
    half_life = spec.half_life
    _check(
        half_life is None or (math.isfinite(half_life) and 1e-3 <= half_life <= 1e9),
        "half_life",
        f"is {half_life!r}; expected seconds, from 0.001 to 1e9, or None",
    )


class _Spec:
    """What all specs share."""

    # Arguments that may change in a normalizer's life: they do not make it another normalizer.
    PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var"})

    def with_parameters(self, **parameters: Any) -> Self:
        """The same spec with other parameters.

        Raises:
            InvalidSpec: one of them does not fit.
        """
        return replace(self, **parameters)  # type: ignore[type-var]

    def same_structure(self, other: object) -> bool:
        """Whether both compute the same thing, affine parameters and initial statistics left out."""
        return type(self) is type(other) and all(
            getattr(self, f.name) == getattr(other, f.name)
            for f in fields(self)  # type: ignore[arg-type]
            if f.name not in self.PARAMETERS
        )

    def __eq__(self, other: object) -> bool:
        return self.same_structure(other) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in self.PARAMETERS if hasattr(self, name)
        )

    def __hash__(self) -> int:
        return hash((type(self), *(repr(getattr(self, f.name)) for f in fields(self))))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class BatchNorm(_Spec):
    """Each channel over all other axes, as torch.nn.BatchNorm1d, 2d and 3d; keeps running statistics.

    Args:
        num_features: the number of channels, C.
        eps: added to the variance.
        momentum: the weight of the newest batch in the running statistics; None for the plain average of all batches.
        weight, bias: scale and shift, C values each; 1 and 0 if not given.
        running_mean, running_var: statistics to start from, C values each, both or neither; the variance is unbiased.
        channel_axis: which axis is C.
        renorm: (r_max, d_max) of batch renormalization (Ioffe 2017), used in TRAIN mode.
        virtual_batch_size: samples per ghost batch (Hoffer et al. 2017) in BATCH and TRAIN mode.
        half_life: seconds; average exponentially by time instead; momentum is then not used.
        freeze_after: stop by itself after this many rows.
        nan_policy: "reject" contributions with NaN or infinities, or "omit" such values.

    Raises:
        InvalidSpec: an argument is wrong.
    """

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    weight: Any = None
    bias: Any = None
    running_mean: Any = None
    running_var: Any = None
    channel_axis: int = 1
    renorm: tuple[float, float] | None = None
    virtual_batch_size: int | None = None
    half_life: float | None = None
    freeze_after: int | None = None
    nan_policy: NanPolicy = "reject"

    def __post_init__(self) -> None:
        _running(self)
        _eps(self)
        _averaging(self)
        if self.half_life is not None:
            object.__setattr__(self, "momentum", None)
        for name in sorted(self.PARAMETERS):
            _parameter(self, name, self.num_features)
        _check(
            (self.running_mean is None) == (self.running_var is None),
            "running_mean",
            "and running_var go together: give both or neither",
        )
        if self.running_var is not None:
            _check(bool((self.running_var >= 0).all()), "running_var", "has negative values")
        if self.renorm is not None:
            r_max, d_max = self.renorm
            _check(1 <= r_max < math.inf, "renorm", f"has r_max {r_max!r}; expected at least 1")
            _check(0 <= d_max < math.inf, "renorm", f"has d_max {d_max!r}; expected at least 0")
            object.__setattr__(self, "renorm", (float(r_max), float(d_max)))
        if self.virtual_batch_size is not None:
            _positive_int(self, "virtual_batch_size")
            _check(self.renorm is None, "virtual_batch_size", "and renorm exclude each other")


def _shape(spec: Any) -> int:
    shape = spec.normalized_shape
    shape = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    _check(
        1 <= len(shape) <= 8 and all(1 <= size < 2**31 for size in shape),
        "normalized_shape",
        f"is {shape!r}; expected 1 to 8 sizes of at least 1",
    )
    object.__setattr__(spec, "normalized_shape", shape)
    return math.prod(shape)


@dataclass(frozen=True, eq=False)
class LayerNorm(_Spec):
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
        _eps(self)
        _parameter(self, "weight", size)
        _parameter(self, "bias", size)


@dataclass(frozen=True, eq=False)
class RMSNorm(_Spec):
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
            _eps(self)
        _parameter(self, "weight", size)


@dataclass(frozen=True, eq=False)
class GroupNorm(_Spec):
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
        _positive_int(self, "num_groups", "num_channels")
        _eps(self)
        _check(
            self.num_channels % self.num_groups == 0,
            "num_groups",
            f"is {self.num_groups}; expected a divisor of num_channels = {self.num_channels}",
        )
        _parameter(self, "weight", self.num_channels)
        _parameter(self, "bias", self.num_channels)


@dataclass(frozen=True, eq=False)
class InstanceNorm(_Spec):
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
        _positive_int(self, "num_features")
        _eps(self)
        _parameter(self, "weight", self.num_features)
        _parameter(self, "bias", self.num_features)


@dataclass(frozen=True, eq=False)
class AdaptiveInstanceNorm(_Spec):
    """Each channel of each sample takes the mean and deviation of a style (Huang, Belongie 2017); channels are axis 1.

    The style, a tensor or a normalizer's name, is given with each call.

    Args:
        eps: added to both variances.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        _eps(self)


@dataclass(frozen=True, eq=False)
class MeanVarianceNorm(_Spec):
    """(x - mean) / (deviation + eps) over any axes: ONNX's MeanVarianceNormalization.

    Args:
        axes: the axes that are averaged over.
        eps: added to the deviation.
    """

    axes: Sequence[int] = (0, 2, 3)
    eps: float = 1e-9

    def __post_init__(self) -> None:
        axes = tuple(int(axis) for axis in self.axes)
        _check(
            1 <= len(axes) <= 8 and len(set(axes)) == len(axes) and all(-8 <= axis < 8 for axis in axes),
            "axes",
            f"is {axes!r}; expected 1 to 8 different axes",
        )
        object.__setattr__(self, "axes", axes)
        _eps(self)


@dataclass(frozen=True, eq=False)
class LpNorm(_Spec):
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
        _check(self.p > 0, "p", f"is {self.p!r}; expected a number above 0, or infinity")
        _check(-8 <= self.axis < 8, "axis", f"is {self.axis!r}; expected an axis, from -8 to 7")
        _eps(self)
        object.__setattr__(self, "p", float(self.p))


@dataclass(frozen=True, eq=False)
class LocalResponseNorm(_Spec):
    """x / (k + alpha/size * sum of squares of `size` neighbouring channels) ** beta, as torch.nn.LocalResponseNorm.

    For even sizes torch takes one channel more before than after, ONNX one more after; this is torch's way.

    Args:
        size: how many channels.
        alpha, beta, k: the factor, the exponent, the constant.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __post_init__(self) -> None:
        _positive_int(self, "size")
        for name in ("alpha", "beta", "k"):
            _check(
                math.isfinite(getattr(self, name)),
                name,
                f"is {getattr(self, name)!r}; expected a finite number",
            )
        _check(self.k > 0, "k", f"is {self.k!r}; expected a number above 0")
        _check(self.alpha >= 0, "alpha", f"is {self.alpha!r}; expected at least 0")


@dataclass(frozen=True, eq=False)
class Standardize(_Spec):
    """(x - mean) / sqrt(var + eps) with the mean and population variance of everything ever seen.

    Args:
        num_features: the number of features, C.
        eps: added to the variance.
        clip: keep the output within plus and minus this.
        channel_axis: which axis is C.
        momentum: average exponentially by batch instead, with this weight for the newest, as BatchNorm does
            (the variance is then the average of the batches' unbiased variances).
        half_life: seconds; average exponentially by time instead.
        freeze_after: stop by itself after this many rows.
        nan_policy: "reject" contributions with NaN or infinities, or "omit" such values.
    """

    num_features: int
    eps: float = 1e-8
    clip: float | None = None
    channel_axis: int = -1
    momentum: float | None = None
    half_life: float | None = None
    freeze_after: int | None = None
    nan_policy: NanPolicy = "reject"

    def __post_init__(self) -> None:
        _running(self)
        _eps(self)
        _averaging(self)
        _check(
            self.momentum is None or self.half_life is None,
            "half_life",
            "and momentum exclude each other: average by time or by batch",
        )
        _check(
            self.clip is None or (math.isfinite(self.clip) and self.clip > 0),
            "clip",
            f"is {self.clip!r}; expected a number above 0, or None",
        )


@dataclass(frozen=True, eq=False)
class MinMax(_Spec):
    """The range of everything ever seen, mapped onto feature_range; a constant feature goes to its lower end.

    Args:
        num_features: the number of features, C.
        feature_range: the output's (min, max).
        clip: keep the output within feature_range.
        channel_axis: which axis is C.
        freeze_after: stop by itself after this many rows.
        nan_policy: "reject" contributions with NaN or infinities, or "omit" such values.
    """

    num_features: int
    feature_range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False
    channel_axis: int = -1
    freeze_after: int | None = None
    nan_policy: NanPolicy = "reject"

    def __post_init__(self) -> None:
        _running(self)
        low, high = (float(end) for end in self.feature_range)
        _check(
            math.isfinite(low) and math.isfinite(high) and low < high,
            "feature_range",
            f"is {self.feature_range!r}; expected (min, max), finite, min < max",
        )
        object.__setattr__(self, "feature_range", (low, high))


RunningSpec = BatchNorm | Standardize | MinMax
Spec = (
    RunningSpec
    | LayerNorm
    | RMSNorm
    | GroupNorm
    | InstanceNorm
    | AdaptiveInstanceNorm
    | MeanVarianceNorm
    | LpNorm
    | LocalResponseNorm
)


def keeps_statistics(spec: Spec) -> bool:
    """Whether a normalizer of this spec has running statistics."""
    return isinstance(spec, RunningSpec)
