"""What calls return: frozen values, read off the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.timestamp_pb2 import Timestamp

from normstats.specs import Spec
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2
from normstats.wire import floats
from normstats.wire import spec as spec_wire

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What became of a contribution: the version that holds it; whether it had been counted before; whether the
    normalizer had stopped by itself and left it out."""

    version: int
    duplicate: bool
    frozen: bool

    @classmethod
    def of(cls, message: pb.Contributed, *, duplicate: bool) -> UpdateResult:
        """Read off a reply."""
        return cls(message.version, duplicate, message.frozen)


@dataclass(frozen=True, slots=True)
class NormalizerInfo:
    """A normalizer as the server describes it."""

    name: str
    spec: Spec
    version: int
    count: float
    num_batches: int
    frozen: bool
    create_time: datetime
    update_time: datetime

    @classmethod
    def of(cls, message: resources_pb2.Normalizer) -> NormalizerInfo:
        """Read off a reply."""
        return cls(
            message.name,
            spec_wire.from_proto(message.spec),
            message.version,
            message.count,
            message.num_batches,
            message.frozen,
            _time(message.create_time),
            _time(message.update_time),
        )


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was written: where, how large, and its SHA-256 in hexadecimal digits."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as the server describes it."""

    normalizer: str
    tag: str
    version: int
    count: float
    num_batches: int
    create_time: datetime

    @classmethod
    def of(cls, message: resources_pb2.Snapshot) -> SnapshotInfo:
        """Read off a reply."""
        return cls(
            message.normalizer,
            message.tag,
            message.version,
            message.count,
            message.num_batches,
            _time(message.create_time),
        )


@dataclass(frozen=True, slots=True)
class RunningState:
    """All that a normalizer remembers, as `Client.create(state=...)` takes it; `message` is the contract's own."""

    message: resources_pb2.RunningState

    @property
    def num_batches(self) -> int:
        """Batches ever merged."""
        return self.message.num_batches


@dataclass(frozen=True, slots=True, eq=False)
class Stats:
    """Running statistics at one version, float64 (C,). mean, var, min and max are None while nothing was seen.

    `count` is one number where it is the same for all features, else an array; `ddof` is 1 where var is unbiased.
    """

    normalizer: str
    version: int
    count: float | Array
    num_batches: int
    mean: Array | None
    var: Array | None
    min: Array | None
    max: Array | None
    ddof: int
    frozen: bool
    update_time: datetime
    state: RunningState | None

    @property
    def std(self) -> Array | None:
        """The square root of var."""
        return None if self.var is None else np.sqrt(self.var)

    @classmethod
    def of(cls, message: resources_pb2.RunningStats) -> Stats:
        """Read off a reply."""
        counts = floats.from_bytes(message.count)
        return cls(
            normalizer=message.normalizer,
            version=message.version,
            count=_number(counts[0]) if (counts == counts[0]).all() else counts,
            num_batches=message.num_batches,
            mean=_array(message.mean),
            var=_array(message.var),
            min=_array(message.min),
            max=_array(message.max),
            ddof=message.ddof,
            frozen=message.frozen,
            update_time=_time(message.update_time),
            state=RunningState(message.state) if message.HasField("state") else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What all members of a round gave together.

    Moments are float64 (C,): `m2` is the sum of squared deviations from the mean, `var` the population's variance.
    `count` is one number where it is the same for all features. Where nobody gave a row they are None; so is `vector`
    where nobody gave one. `version` is the normalizer's that holds the round, 0 without one.
    """

    round: int
    members: tuple[bytes, ...]
    count: float | Array
    mean: Array | None
    m2: Array | None
    min: Array | None
    max: Array | None
    vector: Array | None
    version: int

    @property
    def var(self) -> Array | None:
        """m2 / count."""
        return None if self.m2 is None else self.m2 / self.count

    @property
    def std(self) -> Array | None:
        """The square root of var."""
        return None if self.var is None else np.sqrt(self.var)

    @classmethod
    def of(cls, message: pb.SynchronizeStatsResponse.Merged) -> Round:
        """Read off a reply."""
        counts = floats.from_bytes(message.moments.count)
        seen = bool(counts.any())
        mean, m2, low, high = (
            _array(data) if seen else None
            for data in (message.moments.mean, message.moments.m2, message.moments.min, message.moments.max)
        )
        count = 0.0 if not len(counts) else _number(counts[0]) if (counts == counts[0]).all() else counts
        members, vector = tuple(message.member_ids), _array(message.vector)
        return cls(message.round, members, count, mean, m2, low, high, vector, message.version)

    def vector_like(self, given: Any) -> Array:
        """The vector in the shape of what was given."""
        total = np.zeros(0) if self.vector is None else self.vector
        return total.reshape(np.shape(given))


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """How far each feature has moved, the most drifted first: feature indices and three measures, each (C,)."""

    feature: npt.NDArray[np.int64]
    mean_shift: Array
    var_ratio: Array
    symmetric_kl: Array
    base_version: int
    version: int

    @classmethod
    def of(cls, message: pb.CompareSnapshotsResponse) -> Drift:
        """Read off a reply."""
        features = message.features
        return cls(
            np.array([one.feature for one in features], np.int64),
            np.array([one.mean_shift for one in features]),
            np.array([one.var_ratio for one in features]),
            np.array([one.symmetric_kl for one in features]),
            message.base_version,
            message.version,
        )


def _array(data: bytes) -> Array | None:
    return floats.from_bytes(data) if data else None


def _number(value: np.float64) -> float:
    """An int where it is one: rows are counted, sums of weights are not."""
    return int(value) if value == int(value) else float(value)


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


@dataclass(frozen=True)
class Trial:
    """How long a tensor of `size_bytes` took, from host memory and back, in seconds."""

    size_bytes: int
    cpu_seconds: float
    device_seconds: float


@dataclass(frozen=True)
class Placing:
    """From which size on an operation is sent to the device: 0 is always, None never; and what was tried."""

    operation: str
    from_bytes: int | None
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Device:
    """Where a server computes."""

    device: str
    name: str
    placings: tuple[Placing, ...]

    @classmethod
    def of(cls, message: pb.GetDeviceResponse) -> Device:
        """Of the contract's form."""
        placings = (
            Placing(
                one.operation,
                None if one.from_bytes < 0 else one.from_bytes,
                tuple(Trial(trial.size_bytes, trial.cpu_seconds, trial.device_seconds) for trial in one.trials),
            )
            for one in message.placings
        )
        return cls(message.device, message.name, tuple(placings))
