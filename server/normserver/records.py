"""What a normalizer is at one version, and what a snapshot holds: frozen values, made new with each commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from normcore.moments import Moments
from normcore.running import BatchAverage, BatchEma, Cumulative, Running, RunningPolicy, TimeEma
from normserver.errors import keeps_no_statistics
from normstats.specs import BatchNorm, MinMax, RunningSpec, Spec, Standardize

# Statistics are stored in pieces of so many features, 1 MiB at most: a piece is read, decoded or compared within 2 ms.
PIECE_FEATURES = 16_384
# What a feature's statistics take in the store and in memory: seven moments and a count, float64.
FEATURE_BYTES = 64
# The tag of the statistics that are no snapshot's.
PRESENT = ""


@dataclass(frozen=True, slots=True)
class Head:
    """A normalizer at one version without its statistics: what lists show.

    `num_rows` is the largest number of rows over its features; it and `num_batches` are 0 where it keeps no statistics.
    """

    name: str
    spec: Spec
    version: int
    frozen: bool
    created_at: float
    updated_at: float
    num_rows: float = 0.0
    num_batches: int = 0
    creator: str = ""

    @property
    def stopped(self) -> bool:
        """Whether it has stopped by itself: as many rows were merged as freeze_after says."""
        return has_stopped(self.spec, self.num_rows)

    @property
    def num_features(self) -> int:
        """How many features it keeps statistics of; 0 if it keeps none."""
        return width_of(self.spec)

    def check_statistics(self) -> RunningSpec:
        """Its spec, which keeps statistics.

        Raises:
            FailedPrecondition: it keeps none.
        """
        if not isinstance(self.spec, RunningSpec):
            raise keeps_no_statistics(self.name)
        return self.spec


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Record:
    """A normalizer at one version.

    `spec` holds the present affine parameters; `running` is None where the spec keeps no statistics; times are seconds
    since the epoch.
    """

    name: str
    spec: Spec
    version: int
    running: Running | None
    frozen: bool
    created_at: float
    updated_at: float
    creator: str = ""

    @classmethod
    def of(cls, head: Head, running: Running | None) -> Record:
        """A normalizer with its statistics."""
        times = head.created_at, head.updated_at
        return cls(head.name, head.spec, head.version, running, head.frozen, *times, head.creator)

    @property
    def head(self) -> Head:
        """The same without statistics."""
        counts = (0.0, 0) if self.running is None else (rows(self.running), self.running.num_batches)
        times = self.created_at, self.updated_at
        return Head(self.name, self.spec, self.version, self.frozen, *times, *counts, self.creator)

    @property
    def stopped(self) -> bool:
        """Whether it has stopped by itself: as many rows were merged as freeze_after says."""
        return self.running is not None and has_stopped(self.spec, rows(self.running))

    def statistics(self) -> tuple[RunningSpec, Running]:
        """The spec and its running statistics.

        Raises:
            FailedPrecondition: it keeps none.
        """
        if self.running is None or not isinstance(self.spec, RunningSpec):
            raise keeps_no_statistics(self.name)
        return self.spec, self.running


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """A snapshot without its statistics."""

    normalizer: str
    tag: str
    version: int
    num_rows: float
    num_batches: int
    created_at: float


class Usage(NamedTuple):
    """What an identity has made and is still there. Bytes are those that statistics and parameters may take."""

    normalizers: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a group's rounds, as of one grant: every grant has a higher token than those before."""

    group: str
    token: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Who has a lease, and for how many seconds from now on."""

    lease: Lease
    owner: str
    seconds: float


def policy_of(spec: RunningSpec) -> RunningPolicy:
    """How a spec turns batches into running statistics."""
    match spec:
        case MinMax():
            return Cumulative()
        case BatchNorm(half_life=float(seconds)) | Standardize(half_life=float(seconds)):
            return TimeEma(seconds)
        case BatchNorm(momentum=float(weight)) | Standardize(momentum=float(weight)):
            return BatchEma(weight)
        case BatchNorm():
            return BatchAverage()
        case Standardize():
            return Cumulative()


class LazyRunning(Running):
    """Running statistics whose arrays are made when they are first read. `num_rows` is known before."""

    __slots__ = ("num_rows",)

    num_rows: float

    def __getattr__(self, name: str) -> Any:
        """Called for a field that is not set."""
        if name not in ("moments", "count", "num_batches", "time"):
            raise AttributeError(name)
        return self._made(name)

    def piece(self, start: int) -> Running:
        """The piece that begins at a feature, without making the others."""
        raise NotImplementedError

    def _made(self, name: str) -> Any:
        raise NotImplementedError


class Initial(LazyRunning):
    """The statistics before the first contribution: none, or those that the spec gives.

    They take neither memory nor room in the store. The arrays are made anew whenever they are read.
    """

    __slots__ = ("_spec",)

    _spec: RunningSpec

    def __init__(self, spec: RunningSpec) -> None:
        fields = {"_spec": spec, "count": _NO_ROWS, "num_batches": 0, "time": 0.0, "num_rows": 0.0}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def is_empty(self) -> bool:
        """Whether the spec gives none."""
        return not (isinstance(self._spec, BatchNorm) and self._spec.running_mean is not None)

    def piece(self, start: int) -> Running:
        """The piece that begins at a feature, without making the others."""
        return self._of(start, start + PIECE_FEATURES)

    def _made(self, name: str) -> Moments:
        return self._of(0, self._spec.num_features).moments

    def _of(self, start: int, stop: int) -> Running:
        spec = self._spec
        if not isinstance(spec, BatchNorm) or spec.running_mean is None:
            return Running.empty(min(stop, spec.num_features) - start)
        arrays = (spec.running_mean[start:stop], spec.running_var[start:stop])
        return policy_of(spec).seed(*(torch.from_numpy(array.copy()) for array in arrays))


_NO_ROWS = torch.zeros((), dtype=torch.float64)


def start(spec: Spec) -> Running | None:
    """The statistics that a new normalizer has; None if it keeps none."""
    return Initial(spec) if isinstance(spec, RunningSpec) else None


def width_of(spec: Spec) -> int:
    """How many features a spec keeps statistics of; 0 if it keeps none."""
    return spec.num_features if isinstance(spec, RunningSpec) else 0


def stored_bytes(spec: Spec) -> int:
    """What a normalizer of this spec may take in the store: its parameters, and its statistics once there are some."""
    return parameter_bytes(spec) + FEATURE_BYTES * width_of(spec)


def parameter_bytes(spec: Spec) -> int:
    """What the arrays in a spec take."""
    arrays = (getattr(spec, name, None) for name in spec.PARAMETERS)
    return sum(array.nbytes for array in arrays if array is not None)


def bare(spec: Spec) -> Spec:
    """A spec without its arrays: affine parameters and initial statistics."""
    return spec.with_parameters(**{name: None for name in spec.PARAMETERS if hasattr(spec, name)})


def rows(running: Running) -> float:
    """Rows ever merged: the largest over features."""
    return running.num_rows if isinstance(running, LazyRunning) else float(running.count.max())


def part(running: Running, start: int) -> Running:
    """The piece of running statistics that begins at a feature."""
    if isinstance(running, LazyRunning):
        return running.piece(start)
    if running.moments.num_features <= PIECE_FEATURES:
        return running
    stop = start + PIECE_FEATURES
    count = running.count if running.count.dim() == 0 else running.count[start:stop]
    moments = Moments(running.moments.values[:, start:stop].contiguous())
    return Running(moments, count, running.num_batches, running.time)


def has_stopped(spec: Spec, count: float) -> bool:
    """Whether a normalizer of this spec stops by itself at this many rows."""
    return isinstance(spec, RunningSpec) and spec.freeze_after is not None and count >= spec.freeze_after
