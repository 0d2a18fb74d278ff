"""Normalizers' versions over time: a bounded sample of them, thinner the longer it grows. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from normcore.errors import NormcoreError
from normserver.records import Record, policy_of, rows

# Versions that are kept of a normalizer, and normalizers of which some are; together at most 20 MiB.
MAX_POINTS, MAX_NORMALIZERS = 256, 512

_QUARTILES = torch.tensor((0.0, 0.25, 0.5, 0.75, 1.0), dtype=torch.float64)


class Spread(NamedTuple):
    """How a statistic is spread over features."""

    min: float
    lower_quartile: float
    median: float
    upper_quartile: float
    max: float


class Point(NamedTuple):
    """A normalizer at one version; `at` in seconds since 1970, by the wall clock."""

    version: int
    at: float
    num_rows: float
    num_batches: int
    mean: Spread
    std: Spread


def point_of(record: Record) -> Point | None:
    """A version, summed up; None if some feature has seen nothing."""
    spec, running = record.statistics()
    try:
        estimate = policy_of(spec).estimate(running)
    except NormcoreError:
        return None
    return Point(
        record.version,
        record.updated_at,
        rows(running),
        running.num_batches,
        _spread(estimate.mean),
        _spread(estimate.var.sqrt()),
    )


class History:
    """Versions of one normalizer, evenly over the time that was seen. The first and the newest are always there."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._apart_seconds = 0.0
        self._added: list[float] = []  # when each point came, by the monotonic clock: the wall clock may step
        self.points: list[Point] = []

    def add(self, point: Point, now: float) -> None:
        """Add a newer version, at a time of the monotonic clock; one that is not newer changes nothing."""
        points, added = self.points, self._added
        if points and point.version <= points[-1].version:
            return
        if len(points) > 1 and added[-1] - added[-2] < self._apart_seconds:
            points[-1], added[-1] = point, now
            return
        points.append(point)
        added.append(now)
        if len(points) > self._max_points:
            # Every second one, and twice the time between those to come.
            del points[1:-1:2], added[1:-1:2]
            self._apart_seconds = 2 * (added[-1] - added[0]) / self._max_points


class Histories:
    """Those of the normalizers that changed last."""

    def __init__(self, capacity: int = MAX_NORMALIZERS) -> None:
        self._capacity = capacity
        self._histories: OrderedDict[tuple[str, float], History] = OrderedDict()

    def of(self, record: Record) -> History:
        """A normalizer's. One that was deleted and made again has another."""
        key = record.name, record.created_at
        history = self._histories.setdefault(key, History())
        self._histories.move_to_end(key)
        if len(self._histories) > self._capacity:
            self._histories.popitem(last=False)
        return history


def _spread(values: Tensor) -> Spread:
    return Spread(*_at(values.sort().values, _QUARTILES))


def _at(ordered: Tensor, fractions: Tensor) -> list[float]:
    """Between the two values that are nearest to each fraction."""
    places = fractions * (ordered.numel() - 1)
    below = places.floor().long()
    above = places.ceil().long()
    return (ordered[below] + (ordered[above] - ordered[below]) * (places - below)).tolist()
