"""Moments: what a statistic over rows remembers, and all that is done with it. They form a commutative monoid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from normcore import algebra, layout
from normcore.algebra import Parts
from normcore.errors import InvalidParameter, NonFinite, ShapeMismatch
from normcore.kernels import launch
from normcore.kernels.base import M2, ChannelMoments

NanPolicy = Literal["reject", "omit", "propagate"]


ROWS = ("count", "mean", "mean_low", "m2", "m2_low", "min", "max")


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """The moments of C features: values (7, C), float64, in the order of ROWS.

    mean and m2 are double-doubles, the sum of a high and a low word. Where the count is 0 the rest is the identity:
    mean 0, m2 0, min +inf, max -inf, whatever was given.

    Raises:
        ShapeMismatch: values has another shape.
        InvalidParameter: values is not float64.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 2 or self.values.shape[0] != len(ROWS):
            raise ShapeMismatch("values", f"has shape {list(self.values.shape)}; expected ({len(ROWS)}, C)")
        if self.values.dtype != torch.float64:
            raise InvalidParameter("values", f"is {self.values.dtype}; expected torch.float64")
        if launch.any_zero(self.values[0]):
            object.__setattr__(self, "values", algebra.packed(algebra.normalised(algebra.unpacked(self.values))))

    @classmethod
    def of(
        cls, *, count: Tensor, mean: Tensor, mean_low: Tensor, m2: Tensor, m2_low: Tensor, min: Tensor, max: Tensor
    ) -> Moments:
        """Moments of their parts.

        Args:
            count: the sum of weights, or rows; shape () for all features alike, or (C,).
            mean, mean_low: shape (C,).
            m2, m2_low: sum of squared deviations from the mean, shape (C,).
            min, max: smallest and largest value, shape (C,).

        Raises:
            ShapeMismatch: the shapes are others.
            InvalidParameter: some tensor is not float64.
        """
        given = dict(zip(ROWS, (count, mean, mean_low, m2, m2_low, min, max), strict=True))
        for name, value in given.items():
            _check_field(name, value, mean)
        return cls(torch.stack([count.expand_as(mean), *list(given.values())[1:]]))

    @classmethod
    def empty(cls, num_features: int, device: torch.device | None = None) -> Moments:
        """The identity: moments of nothing."""
        return cls(torch.zeros(len(ROWS), num_features, dtype=torch.float64, device=device))

    def to(self, device: torch.device) -> Moments:
        """The same moments on another device."""
        return Moments(self.values.to(device))

    @property
    def count(self) -> Tensor:
        """Shape () where it is the same for all features, else (C,)."""
        return launch.one_for_all(self.values[0])

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self.values[1]

    @property
    def mean_low(self) -> Tensor:
        """(C,)."""
        return self.values[2]

    @property
    def m2(self) -> Tensor:
        """(C,)."""
        return self.values[3]

    @property
    def m2_low(self) -> Tensor:
        """(C,)."""
        return self.values[4]

    @property
    def min(self) -> Tensor:
        """(C,)."""
        return self.values[5]

    @property
    def max(self) -> Tensor:
        """(C,)."""
        return self.values[6]

    @property
    def num_features(self) -> int:
        """C."""
        return self.values.shape[1]

    @property
    def is_empty(self) -> bool:
        """Whether no feature has seen anything."""
        return not bool((self.values[0] > 0).any())


def rows_of(moments: Sequence[Moments]) -> Tensor:
    """Moments one after another in one tensor (K, 7, C).

    Raises:
        ShapeMismatch: they are of different numbers of features.
        InvalidParameter: there are none.
    """
    if not moments:
        raise InvalidParameter("moments", "are none; expected at least one")
    width = moments[0].num_features
    for index, other in enumerate(moments):
        if other.num_features != width:
            raise ShapeMismatch("moments", f"[{index}] has {other.num_features} features; expected {width}")
    return torch.stack([one.values for one in moments])


def moments_from(parts: Parts) -> Moments:
    """Moments of bare tensors of shape (C,), the count's () or (1,) where it is one for all."""
    return Moments(algebra.packed(parts))


def parts_of(moments: Moments) -> Parts:
    """The bare tensors."""
    return algebra.unpacked(moments.values)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both together (Chan, Golub, LeVeque 1979). Commutative; an empty side gives exactly the other.

    Counts being integers, any order of merging gives the same float64 mean and m2 (the low words may differ). Values
    beyond 1e154, whose squares exceed float64, give an infinite m2: see `violations`.
    """
    return merge_all((a, b))


def merge_all(moments: Sequence[Moments]) -> Moments:
    """All merged at once.

    Raises:
        ShapeMismatch: they are of different numbers of features.
        InvalidParameter: there are none.
    """
    return Moments(launch.compose(rows_of(moments), None, between=True))


def pool(a: Moments, b: Moments) -> Moments:
    """`merge` without the term between means: means are averaged by weight, m2 added."""
    return Moments(launch.compose(rows_of((a, b)), None, between=False))


def scale(moments: Moments, factor: float | Tensor) -> Moments:
    """Every weight times a finite factor >= 0: count and m2 scale, mean, min and max stay; 0 gives the identity."""
    factors = torch.as_tensor(factor, dtype=torch.float64, device=moments.mean.device)
    return moments_from(algebra.scale(parts_of(moments), factors))


def variance(moments: Moments, ddof: int = 0) -> Tensor:
    """m2 / (count - ddof), shape (C,), never negative; NaN where count <= ddof."""
    degrees = moments.count - ddof
    return torch.where(degrees > 0, moments.m2 / degrees, torch.nan)


class Broken(NamedTuple):
    """A rule, the first feature that breaks it and none before it, what stands there, and how many such features."""

    field: str
    feature: int
    value: float
    expected: str
    features: int


def broken(moments: Moments) -> Iterator[Broken]:
    """What no moments of real values could be.

    count finite and >= 0; and where it is above 0: all finite, m2 >= 0, min <= mean <= max up to 8 ulp, and low words
    that are what is left after rounding to the high ones.
    """
    seen = moments.count > 0
    slack = 8 * torch.finfo(torch.float64).eps * torch.maximum(moments.min.abs(), moments.max.abs())
    rules = (
        ("count", "finite and at least 0", torch.isfinite(moments.count) & (moments.count >= 0)),
        *((name, "finite", torch.isfinite(getattr(moments, name)) | ~seen) for name in ROWS[1:]),
        ("m2", "at least 0", (moments.m2 >= 0) | ~seen),
        ("max", "at least min", (moments.max >= moments.min) | ~seen),
        ("mean", "at least min", (moments.mean >= moments.min - slack) | ~seen),
        ("mean", "at most max", (moments.mean <= moments.max + slack) | ~seen),
        ("mean_low", "less than half an ulp of mean", moments.mean + moments.mean_low == moments.mean),
        ("m2_low", "less than half an ulp of m2", moments.m2 + moments.m2_low == moments.m2),
    )
    sound = torch.ones_like(moments.mean, dtype=torch.bool)
    for name, expected, holds in rules:
        breaks = sound & ~holds
        if bool(breaks.any()):
            feature = int(breaks.nonzero()[0])
            value = getattr(moments, name).expand(breaks.shape)[feature].item()
            yield Broken(name, feature, value, expected, int(breaks.sum()))
            sound &= holds


def violations(moments: Moments) -> str | None:
    """The first rule that is broken, as a sentence that begins with the field's name; None if all is well."""
    first = next(broken(moments), None)
    return None if first is None else f"{first.field}[{first.feature}] is {first.value!r}; expected {first.expected}"


def moments_of(
    x: Tensor,
    channel_axis: int,
    *,
    num_features: int | None = None,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    nan_policy: NanPolicy = "reject",
) -> Moments:
    """The moments of a batch: of each channel over all other axes. Integers and half precision count exactly.

    Args:
        x: any real dtype; 1-D (N,) is N rows where num_features is 1.
        channel_axis: which axis is C.
        num_features: what C is expected to be.
        mask: bool, of x's rank, broadcastable to x; False is in no statistic.
        weights: one per sample (slice of axis 0), finite and >= 0; 0 leaves the sample out, of min and max too.
        nan_policy: "reject" NaN and infinities, "omit" them, or let them "propagate".

    Raises:
        ShapeMismatch: x, mask or weights do not fit one another.
        NonFinite: nan_policy is "reject" and there are some.
        InvalidParameter: a weight is negative or not finite; the squares of x exceed float64.
    """
    view = layout.by_channel(x, channel_axis, num_features, mask, weights)
    found = launch.channel_moments(view.x, view.shape, view.mask, view.weights, omit=nan_policy == "omit")
    check(found, x, nan_policy, mask, weights)
    return moments_found(found)


def moments_found(found: ChannelMoments) -> Moments:
    """What a kernel found, as moments; looked at again only where it must be."""
    if not found.plain:
        return Moments(found.values)
    moments = object.__new__(Moments)
    object.__setattr__(moments, "values", found.values)
    return moments


def check(
    found: ChannelMoments, x: Tensor, nan_policy: NanPolicy, mask: Tensor | None = None, weights: Tensor | None = None
) -> None:
    """Refuse moments of x that its values made infinite, unless those propagate.

    Raises:
        NonFinite: nan_policy is "reject" and there are NaN or infinities.
        InvalidParameter: the squares of x exceed float64.
    """
    if found.plain or nan_policy == "propagate" or bool(torch.isfinite(found.values[M2]).all()):
        return
    if nan_policy == "omit" or found.nonfinite is None or not bool(found.nonfinite.any()):
        raise InvalidParameter("x", "has values whose squares exceed float64; expected magnitudes below 1e150")
    bad = ~torch.isfinite(x)
    if mask is not None:
        bad &= mask
    if weights is not None:
        bad &= (weights > 0).to(x.device).reshape(-1, *[1] * (x.dim() - 1))
    raise NonFinite("x", int(bad.sum()), tuple(bad.nonzero()[0].tolist()))


def _check_field(name: str, value: Tensor, mean: Tensor) -> None:
    if value.dtype != torch.float64:
        raise InvalidParameter(name, f"is {value.dtype}; expected torch.float64")
    allowed = {mean.shape, torch.Size()} if name == "count" else {mean.shape}
    if mean.dim() != 1 or value.shape not in allowed:
        raise ShapeMismatch(name, f"has shape {list(value.shape)}; expected (C,), C as in mean {list(mean.shape)}")
