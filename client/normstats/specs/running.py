"""The normalizations that keep running statistics: batch norm, standardization, min-max scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from normstats.specs.base import MAX_FEATURES, SpecBase, check, check_eps, check_parameter, check_positive_int

NanPolicy = Literal["reject", "omit"]


@dataclass(frozen=True, eq=False)
class BatchNorm(SpecBase):
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
        check_eps(self)
        _averaging(self)
        if self.half_life is not None:
            object.__setattr__(self, "momentum", None)
        for name in sorted(self.PARAMETERS):
            check_parameter(self, name, self.num_features)
        check(
            (self.running_mean is None) == (self.running_var is None),
            "running_mean",
            "and running_var go together: give both or neither",
        )
        if self.running_var is not None:
            check(bool((self.running_var >= 0).all()), "running_var", "has negative values")
        if self.renorm is not None:
            r_max, d_max = self.renorm
            check(1 <= r_max < math.inf, "renorm", f"has r_max {r_max!r}; expected at least 1")
            check(0 <= d_max < math.inf, "renorm", f"has d_max {d_max!r}; expected at least 0")
            object.__setattr__(self, "renorm", (float(r_max), float(d_max)))
        if self.virtual_batch_size is not None:
            check_positive_int(self, "virtual_batch_size")
            check(self.renorm is None, "virtual_batch_size", "and renorm exclude each other")


@dataclass(frozen=True, eq=False)
class Standardize(SpecBase):
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
        check_eps(self)
        _averaging(self)
        check(
            self.momentum is None or self.half_life is None,
            "half_life",
            "and momentum exclude each other: average by time or by batch",
        )
        check(
            self.clip is None or (math.isfinite(self.clip) and self.clip > 0),
            "clip",
            f"is {self.clip!r}; expected a number above 0, or None",
        )


@dataclass(frozen=True, eq=False)
class MinMax(SpecBase):
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
        check(
            math.isfinite(low) and math.isfinite(high) and low < high,
            "feature_range",
            f"is {self.feature_range!r}; expected (min, max), finite, min < max",
        )
        object.__setattr__(self, "feature_range", (low, high))


RunningSpec = BatchNorm | Standardize | MinMax


def _running(spec: Any) -> None:
    check_positive_int(spec, "num_features")
    check(
        spec.num_features <= MAX_FEATURES,
        "num_features",
        f"is {spec.num_features}; expected at most {MAX_FEATURES}: each has statistics of 56 bytes",
    )
    check(
        isinstance(spec.channel_axis, int) and -8 <= spec.channel_axis < 8,
        "channel_axis",
        f"is {spec.channel_axis!r}; expected an axis, from -8 to 7",
    )
    check(
        spec.nan_policy in ("reject", "omit"),
        "nan_policy",
        f"is {spec.nan_policy!r}; expected 'reject' or 'omit'",
    )
    check(
        spec.freeze_after is None or (isinstance(spec.freeze_after, int) and 1 <= spec.freeze_after < 2**53),
        "freeze_after",
        f"is {spec.freeze_after!r}; expected a count of at least 1, or None",
    )


def _averaging(spec: Any) -> None:
    for name in ("momentum", "half_life"):
        if (value := getattr(spec, name)) is not None:
            object.__setattr__(spec, name, float(value))
    momentum = spec.momentum
    check(
        momentum is None or 0 < momentum <= 1,
        "momentum",
        f"is {momentum!r}; expected the weight of the newest batch, 0 < momentum <= 1, or None",
    )
    half_life = spec.half_life
    check(
        half_life is None or (math.isfinite(half_life) and 1e-3 <= half_life <= 1e9),
        "half_life",
        f"is {half_life!r}; expected seconds, from 0.001 to 1e9, or None",
    )
