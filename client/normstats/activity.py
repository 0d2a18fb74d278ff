"""What a server is doing, as `Client.activity` and `Normalizer.history` return it: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from normstats.v1 import activity_pb2
from normstats.v1 import normalization_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server that answers. `not_ready` says why no calls should come, or nothing; an empty prefix is all names."""

    release: str
    start_time: datetime
    store: str
    device: str
    not_ready: str
    last_commit_time: datetime | None
    readable_prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """What it did in one second, which ended at `time`, and what it held then; each as the contract describes it."""

    time: datetime
    calls_per_second: float
    errors_per_second: float
    contributions_per_second: float
    duplicates_per_second: float
    received_bytes_per_second: float
    sent_bytes_per_second: float
    call_p50_seconds: float
    call_p99_seconds: float
    queue_p99_seconds: float
    commit_p50_seconds: float
    commit_p99_seconds: float
    calls_under_way: int
    queued_normalizations: int
    pending_contributions: int
    open_streams: int
    watchers: int
    open_rounds: int
    active_producers: int
    compute_busy_ratio: float
    cpu_cores: float
    resident_bytes: int

    @classmethod
    def of(cls, message: activity_pb2.Load) -> Load:
        """Read off a reply."""
        names = [name for name in cls.__slots__ if name != "time"]
        return cls(_time(message.time), *(getattr(message, name) for name in names))


@dataclass(frozen=True, slots=True)
class ActiveNormalizer:
    """A normalizer that was changed not long ago."""

    name: str
    version: int
    num_features: int
    count: float
    update_time: datetime
    contributions_per_second: float


@dataclass(frozen=True, slots=True)
class ActiveProducer:
    """A producer, as far as it contributes to one normalizer. `id`: the first 8 hexadecimal digits of its own."""

    id: str
    normalizer: str
    last_time: datetime
    sequence: int
    contributions: int
    duplicates: int
    contributions_per_second: float

    @classmethod
    def of(cls, message: activity_pb2.ActiveProducer) -> ActiveProducer:
        """Read off a reply."""
        return cls(
            message.producer_id,
            message.normalizer,
            _time(message.last_time),
            message.sequence,
            message.contributions,
            message.duplicates,
            message.contributions_per_second,
        )


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round that waits: `present` gave their parts, `missing` gave theirs to one of the last rounds alone.

    Members are named by the first 8 hexadecimal digits of their ids.
    """

    group: str
    round: int
    size: int
    present: tuple[str, ...]
    missing: tuple[str, ...]
    waited_seconds: float
    remaining_seconds: float
    normalizer: str


@dataclass(frozen=True, slots=True)
class Activity:
    """What a server is doing: loads oldest first, normalizers and producers newest first, rounds longest first."""

    server: ServerInfo
    load: tuple[Load, ...]
    normalizers: tuple[ActiveNormalizer, ...]
    producers: tuple[ActiveProducer, ...]
    rounds: tuple[OpenRound, ...]

    @classmethod
    def of(cls, message: activity_pb2.Activity) -> Activity:
        """Read off a reply."""
        server = message.server
        return cls(
            ServerInfo(
                server.release,
                _time(server.start_time),
                server.store,
                server.device,
                server.not_ready,
                _time(server.last_commit_time) if server.HasField("last_commit_time") else None,
                tuple(server.readable_prefixes),
            ),
            tuple(map(Load.of, message.load)),
            tuple(map(_normalizer, message.normalizers)),
            tuple(map(ActiveProducer.of, message.producers)),
            tuple(map(_round, message.rounds)),
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """How a statistic is spread over features: the smallest, the quartiles, the largest."""

    min: float
    lower_quartile: float
    median: float
    upper_quartile: float
    max: float


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A normalizer at one version: its features' means and standard deviations, summed up."""

    version: int
    time: datetime
    count: float
    num_batches: int
    mean: Spread
    std: Spread


@dataclass(frozen=True, slots=True)
class History:
    """How a normalizer came to be what it is, as far as a server has seen: oldest first; and who contributed to it."""

    points: tuple[HistoryPoint, ...]
    producers: tuple[ActiveProducer, ...]

    @classmethod
    def of(cls, message: pb.GetHistoryResponse) -> History:
        """Read off a reply."""
        return cls(tuple(map(_point, message.points)), tuple(map(ActiveProducer.of, message.producers)))


def _normalizer(message: activity_pb2.ActiveNormalizer) -> ActiveNormalizer:
    return ActiveNormalizer(
        message.name,
        message.version,
        message.num_features,
        message.count,
        _time(message.update_time),
        message.contributions_per_second,
    )


def _round(message: activity_pb2.OpenRound) -> OpenRound:
    return OpenRound(
        message.group,
        message.round,
        message.size,
        tuple(message.present),
        tuple(message.missing),
        message.waited_seconds,
        message.remaining_seconds,
        message.normalizer,
    )


def _point(message: activity_pb2.HistoryPoint) -> HistoryPoint:
    return HistoryPoint(
        message.version,
        _time(message.time),
        message.count,
        message.num_batches,
        _spread(message.mean),
        _spread(message.std),
    )


def _spread(message: activity_pb2.Spread) -> Spread:
    return Spread(message.min, message.lower_quartile, message.median, message.upper_quartile, message.max)


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
