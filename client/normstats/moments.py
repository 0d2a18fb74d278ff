"""Moments of a batch, taken by the worker with numpy: float64, shifted, two passes in blocks of bounded memory.

normcore takes the same moments with torch; a conformance test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from normstats import specs
from normstats.arrays import numbers_of
from normstats.errors import InvalidArgument
from normstats.v1 import resources_pb2
from normstats.wire import floats

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# 8 MiB of float64: beyond the caches' reach each pass reads memory once, and temporaries stay small.
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """count (one number, or (C,) where features differ), mean and its low-order word, m2, min, max: float64 (C,)."""

    count: Array
    mean: Array
    mean_low: Array
    m2: Array
    min: Array
    max: Array

    @classmethod
    def empty(cls, num_features: int) -> Moments:
        """Moments of nothing."""
        zeros = np.zeros(num_features)
        return cls(np.zeros(1), zeros, zeros, zeros, zeros + np.inf, zeros - np.inf)

    def to_proto(self) -> resources_pb2.Moments:
        """The contract's form."""
        return resources_pb2.Moments(
            count=floats.to_bytes(self.count),
            mean=floats.to_bytes(self.mean),
            mean_low=floats.to_bytes(self.mean_low),
            m2=floats.to_bytes(self.m2),
            min=floats.to_bytes(self.min),
            max=floats.to_bytes(self.max),
        )


def batches_of(
    batch: Any, spec: specs.RunningSpec, *, lengths: Any = None, mask: Any = None, weights: Any = None
) -> list[Moments]:
    """The moments of a batch; one of each ghost batch, in order, where the spec has those.

    Args:
        batch: numpy array, torch tensor or sequence; 1-D (N,) is N rows where there is one feature.
        lengths, mask: which elements are real; aligned with the leading axes, the channel axis left out.
        weights: one per sample, finite, none negative.

    Raises:
        InvalidArgument: shapes do not fit, or values are not finite and the spec rejects those.
    """
    x = numbers_of(batch)
    axis = _channel_axis(x, spec)
    real = _mask(x, axis, lengths, mask)
    weighted = None if weights is None else _weights(x, weights)
    size = spec.virtual_batch_size if isinstance(spec, specs.BatchNorm) else None
    starts = range(0, x.shape[0], size) if size else (0,)
    stop = size or max(x.shape[0], 1)
    return [
        _moments(
            x[start : start + stop],
            axis,
            None if real is None else real[start : start + stop],
            None if weighted is None else weighted[start : start + stop],
            spec.nan_policy,
        )
        for start in starts
    ]


def moments_of(
    batch: Any, spec: specs.RunningSpec, *, lengths: Any = None, mask: Any = None, weights: Any = None
) -> Moments:
    """The moments of a whole batch, as if the spec had no ghost batches; see `batches_of`."""
    x = numbers_of(batch)
    axis = _channel_axis(x, spec)
    real = _mask(x, axis, lengths, mask)
    return _moments(x, axis, real, None if weights is None else _weights(x, weights), spec.nan_policy)


def _channel_axis(x: npt.NDArray[Any], spec: specs.RunningSpec) -> int:
    """The channel axis from the front; x.ndim, one past the last, for (N,) of one feature."""
    if x.ndim == 1 and spec.num_features == 1:
        return 1
    if x.ndim == 0 or not -x.ndim <= spec.channel_axis < x.ndim:
        raise InvalidArgument(f"batch has shape {x.shape}; there is no channel_axis {spec.channel_axis}", field="batch")
    axis = spec.channel_axis % x.ndim
    if x.shape[axis] != spec.num_features:
        raise InvalidArgument(
            f"batch.shape[{axis}] is {x.shape[axis]}; the normalizer has {spec.num_features} features",
            field=f"batch.shape[{axis}]",
        )
    return axis


def _mask(x: npt.NDArray[Any], axis: int, lengths: Any, mask: Any) -> Mask | None:
    """A mask of x's rank that broadcasts to x, all of axis 0 written out; None if everything is real."""
    if lengths is not None and mask is not None:
        raise InvalidArgument("lengths and mask are both given; expected one of them", field="lengths")
    axes = [one for one in range(x.ndim) if one != axis]
    if lengths is not None:
        mask = _of_lengths(x, axes, numbers_of(lengths, "lengths"))
    if mask is None:
        return None
    mask = numbers_of(mask, "mask")
    if mask.dtype != np.bool_:
        raise InvalidArgument(f"mask is {mask.dtype}; expected bool", field="mask")
    if mask.ndim < x.ndim:
        shape = [1] * x.ndim
        for size, one in zip(mask.shape, axes, strict=False):
            shape[one] = size
        mask = mask.reshape(shape)
    try:
        np.broadcast_to(mask, x.shape)
    except ValueError:
        raise InvalidArgument(f"mask has shape {mask.shape}; batch has {x.shape}", field="mask") from None
    return np.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))


def _of_lengths(x: npt.NDArray[Any], axes: list[int], lengths: npt.NDArray[Any]) -> Mask:
    if len(axes) < 2:
        raise InvalidArgument(f"lengths are given; batch of shape {x.shape} has no axis for them", field="lengths")
    samples, positions = x.shape[axes[0]], x.shape[axes[1]]
    if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
        raise InvalidArgument(
            f"lengths are {lengths.dtype} of shape {lengths.shape}; expected {samples} integers", field="lengths"
        )
    if ((lengths < 0) | (lengths > positions)).any():
        raise InvalidArgument(
            f"lengths are {lengths.min()} to {lengths.max()}; expected 0 to {positions}", field="lengths"
        )
    return np.arange(positions) < lengths[:, None]


def _weights(x: npt.NDArray[Any], weights: Any) -> Array:
    values = specs.float64_array(weights)
    if values.shape != x.shape[:1]:
        raise InvalidArgument(
            f"weights have shape {values.shape}; expected one per sample, {x.shape[0]}", field="weights"
        )
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        index = int(bad.argmax())
        raise InvalidArgument(
            f"weights[{index}] is {values[index]}; expected a finite number, at least 0", field=f"weights[{index}]"
        )
    return values


@dataclass(slots=True)
class _Rows:
    """A batch as rows of features, cut into blocks; `real` is (R, 1 or C), `weights` (R, 1), or None."""

    x: npt.NDArray[Any]
    real: Mask | None
    weights: Array | None

    def blocks(self) -> Iterator[tuple[Array, Array | None]]:
        """Blocks of rows as float64, and of their weights, 0 where nothing is real."""
        step = max(1, _BLOCK_ELEMENTS // max(1, self.x.shape[1]))
        for start in range(0, self.x.shape[0], step):
            stop = start + step
            weight = None if self.weights is None else self.weights[start:stop]
            if self.real is not None:
                real = self.real[start:stop].astype(np.float64)
                weight = real if weight is None else real * weight
            yield self.x[start:stop].astype(np.float64), weight


def _moments(
    x: npt.NDArray[Any], axis: int, real: Mask | None, weights: Array | None, nan_policy: specs.NanPolicy
) -> Moments:
    x, real, weights = _as_rows(x, axis, real, weights)
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        bad = ~finite if real is None else ~finite & real
        if nan_policy == "omit":
            real = finite if real is None else finite & real
        elif bad.any():
            first = np.argwhere(bad)[0].tolist()
            raise InvalidArgument(
                f"batch has {int(bad.sum())} values that are not finite, the first of feature {first[1]} in row "
                f"{first[0]}; leave them out by a mask, or make the normalizer with nan_policy='omit'",
                field="batch",
                reason="NON_FINITE",
            )
    if real is not None:
        x = np.where(real, x, x.dtype.type(0))
    rows = _Rows(x, real, weights)
    return _two_passes(rows, _count(rows))


def _as_rows(
    x: npt.NDArray[Any], axis: int, real: Mask | None, weights: Array | None
) -> tuple[npt.NDArray[Any], Mask | None, Array | None]:
    if axis == x.ndim:
        x, real = x[:, None], None if real is None else real[:, None]
    moved = np.moveaxis(x, axis, -1)
    rows, channels = int(np.prod(moved.shape[:-1], dtype=object)), moved.shape[-1]
    if weights is not None:
        weights = np.broadcast_to(weights.reshape(-1, *[1] * (moved.ndim - 2)), moved.shape[:-1]).reshape(rows, 1)
        if not weights.all():  # a sample of no weight is in no statistic, of min and max neither
            real = np.ones([1] * x.ndim, np.bool_) if real is None else real
            real = real & np.moveaxis((weights > 0).reshape(*moved.shape[:-1], 1), -1, axis)
    if real is not None:
        real = np.moveaxis(real, axis, -1)
        real = np.broadcast_to(real, (*moved.shape[:-1], real.shape[-1])).reshape(rows, real.shape[-1])
    return moved.reshape(rows, channels), real, weights


def _count(rows: _Rows) -> Array:
    if rows.real is None and rows.weights is None:
        return np.array([float(rows.x.shape[0])])
    weight = rows.weights if rows.weights is not None else np.ones((1, 1))
    return np.asarray((weight if rows.real is None else rows.real * weight).sum(axis=0, dtype=np.float64))


def _two_passes(rows: _Rows, count: Array) -> Moments:
    """Shifted by each feature's smallest value, so that a constant has an m2 of exactly 0; then around the mean."""
    channels = rows.x.shape[1]
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for block, weight in rows.blocks():
        real = True if weight is None else np.broadcast_to(weight > 0, block.shape)
        low = np.minimum(low, block.min(axis=0, initial=np.inf, where=real))
        high = np.maximum(high, block.max(axis=0, initial=-np.inf, where=real))
    seen = np.broadcast_to(count > 0, channels)
    shift, n = np.where(seen, low, 0.0), np.where(seen, count, 1.0)
    mean = shift + sum((_sum(block - shift, weight) for block, weight in rows.blocks()), np.zeros(channels)) / n
    off, m2 = np.zeros(channels), np.zeros(channels)
    for block, weight in rows.blocks():
        deviation = block - mean
        off += _sum(deviation, weight)
        m2 += _sum(deviation * deviation, weight)
    m2 = np.where(seen, np.maximum(m2 - off * (off / n), 0.0), 0.0)
    exact, rest = _two_sum(np.where(seen, mean, 0.0), np.where(seen, off / n, 0.0))
    return Moments(count, exact, rest, m2, low, high)


def _sum(values: Array, weight: Array | None) -> Array:
    """The sum over rows in two levels: numpy adds rows one by one, and a million roundings would cost three digits."""
    weighted = values if weight is None else values * weight
    starts = np.arange(0, len(weighted), max(1, isqrt(len(weighted))))
    return np.asarray(np.add.reduceat(weighted, starts, axis=0).sum(axis=0)) if len(starts) else weighted.sum(axis=0)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b as a rounded sum and what rounding left out (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
