"""The contract's form of the domain's values: what handlers answer with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from google.protobuf.timestamp_pb2 import Timestamp
from torch import Tensor

from normcore.drift import Drift
from normcore.errors import NormcoreError
from normserver import codec, device_metrics, status
from normserver.activity.activity import Doing
from normserver.activity.contributors import Contributor
from normserver.activity.history import Point
from normserver.activity.load import Load
from normserver.codec import Encoded, Reply
from normserver.contributions import Contributed, Outcome
from normserver.engine import Mode
from normserver.placement import Placement
from normserver.records import Head, Record, SnapshotHead, policy_of
from normstats import specs
from normstats.v1 import activity_pb2, resources_pb2
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import carried
from normstats.wire import spec as spec_wire

# Numbers of the fields of NormalizeResult.
_RESPONSE = pb.NormalizeResult.RESPONSE_FIELD_NUMBER
_STATUS = pb.NormalizeResult.STATUS_FIELD_NUMBER

MODES = {Mode.EVAL: pb.MODE_EVAL, Mode.BATCH: pb.MODE_BATCH, Mode.TRAIN: pb.MODE_TRAIN}


def normalizer(head: Head) -> resources_pb2.Normalizer:
    """A normalizer."""
    message = resources_pb2.Normalizer(
        name=head.name,
        spec=spec_wire.to_proto(head.spec),
        version=head.version,
        frozen=head.frozen or head.stopped,
        count=head.num_rows,
        num_batches=head.num_batches,
    )
    _set(message.create_time, head.created_at)
    _set(message.update_time, head.updated_at)
    return message


def snapshot(head: SnapshotHead) -> resources_pb2.Snapshot:
    """A snapshot."""
    message = resources_pb2.Snapshot(
        normalizer=head.normalizer,
        tag=head.tag,
        version=head.version,
        count=head.num_rows,
        num_batches=head.num_batches,
    )
    _set(message.create_time, head.created_at)
    return message


def stats(record: Record, *, include_state: bool = False) -> resources_pb2.RunningStats:
    """The statistics of a normalizer that keeps some."""
    spec, running = record.statistics()
    message = resources_pb2.RunningStats(
        normalizer=record.name,
        version=record.version,
        count=codec.float64_bytes(running.count),
        num_batches=running.num_batches,
        ddof=1 if isinstance(spec, specs.BatchNorm) else 0,
        frozen=record.frozen or record.stopped,
    )
    _set(message.update_time, record.updated_at)
    if include_state:
        message.state.CopyFrom(codec.encode_running(running))
    try:
        estimate = policy_of(spec).estimate(running)
    except NormcoreError:  # some feature has seen nothing: there is a state, and no statistics yet
        return message
    message.ddof = estimate.ddof
    message.mean = codec.float64_bytes(estimate.mean)
    message.var = codec.float64_bytes(estimate.var)
    message.min = codec.float64_bytes(estimate.min)
    message.max = codec.float64_bytes(estimate.max)
    return message


def watched(record: Record) -> bytes:
    """What watchers are sent, serialized: the same for all of them."""
    return pb.WatchRunningStatsResponse(stats=stats(record)).SerializeToString()


def normalized(mode: Mode, version: int) -> Reply:
    """How a tensor was normalized; the tensor comes to it by `codec.encode_tensor`."""
    return Reply(pb.NormalizeResponse, MODES[mode], version)


def normalized_chunk(mode: Mode, version: int) -> Reply:
    """How a chunk was."""
    return Reply(pb.NormalizeStreamResponse, MODES[mode], version)


def normalized_many(ended: Sequence[bytes | Exception], method: str, number: int = 0) -> bytes:
    """What became of each of several tensors: what Normalize would send, or its status. `number`: the message's."""
    items = []
    for end in ended:
        if isinstance(end, Exception):
            field, sent = _STATUS, status.told(end, method).SerializeToString()
        else:
            field, sent = _RESPONSE, end
        items.append((carried.prefix(field, len(sent)), sent))
    return carried.serialize_items(items, number)


def only_one(header: bytes, size: int) -> bytes:
    """What goes before a reply's `size` bytes of data where it is all that a NormalizeManyStreamResponse says."""
    return carried.around(header, size, depth=2)


def trained(result: Encoded, outcome: Outcome) -> bytes:
    """A reply whose tensor was contributed too. Fields may come in any order, and the last of a kind counts."""
    counted = pb.NormalizeResponse(duplicate=outcome.duplicate, version=outcome.contributed[0].version)
    return counted.SerializeToString() + result.sent


def contributed(item: Contributed) -> pb.Contributed:
    """What became of a contribution to one normalizer."""
    return pb.Contributed(normalizer=item.name, version=item.version, frozen=item.stopped)


def got_stats(record: Record, *, include_state: bool) -> bytes:
    """The answer to GetRunningStats, serialized."""
    stats_ = stats(record, include_state=include_state)
    return pb.GetRunningStatsResponse(stats=stats_).SerializeToString()


def worst(moved: Drift, limit: int) -> tuple[Tensor, Tensor]:
    """The features that moved most, the farthest first, all if `limit` is 0; and their three figures in rows."""
    order = moved.worst_first()[: limit or None]
    return order, torch.stack([moved.mean_shift[order], moved.var_ratio[order], moved.symmetric_kl[order]], dim=1)


class Compared:
    """The answer to CompareSnapshots, written as bytes in bounded steps, one for each of `starts`.

    A million messages of protobuf would take 3.7 s, most of them with the GIL; a step takes 1 ms.
    """

    def __init__(self, features: Tensor, figures: Tensor, base_version: int, version: int) -> None:
        self._features, self._figures = features.numpy(), figures.numpy()
        versions = pb.CompareSnapshotsResponse(base_version=base_version, version=version).SerializeToString()
        self.serialized = codec.unwritten(_DRIFT_BYTES * len(self._features), footer=versions)
        self.starts = range(0, len(self._features), _DRIFTS)
        whole = torch.frombuffer(self.serialized, dtype=torch.uint8) if self.serialized else torch.empty(0)
        self._rows = whole[: _DRIFT_BYTES * len(self._features)].numpy().reshape(-1, _DRIFT_BYTES)

    def write(self, start: int) -> None:
        """Write some features' drift, as protobuf does, but that zeros are written too."""
        stop = start + _DRIFTS
        rows, features, figures = self._rows[start:stop], self._features[start:stop], self._figures[start:stop]
        rows[:, :3] = _FEATURES_TAG, _DRIFT_BYTES - 2, _FEATURE_TAG
        for index in range(_VARINT_BYTES):  # a number may have more bytes than it needs
            more = 0x80 if index < _VARINT_BYTES - 1 else 0
            rows[:, 3 + index] = features >> (7 * index) & 0x7F | more
        for index, tag in enumerate(_DRIFT_TAGS):
            at = 3 + _VARINT_BYTES + 9 * index
            rows[:, at] = tag
            rows[:, at + 1 : at + 9] = np.ascontiguousarray(figures[:, index : index + 1], "<f8").view(np.uint8)


_DRIFTS = 8192
_VARINT_BYTES = 4  # a feature's number is below 2^22
_DRIFT_BYTES = 3 + _VARINT_BYTES + 3 * 9


def _tag(number: int, kind: int) -> int:
    return number << 3 | kind


_FEATURES_TAG = _tag(pb.CompareSnapshotsResponse.FEATURES_FIELD_NUMBER, 2)
_FEATURE_TAG = _tag(pb.FeatureDrift.FEATURE_FIELD_NUMBER, 0)
_DRIFT_TAGS = [
    _tag(number, 1)
    for number in (
        pb.FeatureDrift.MEAN_SHIFT_FIELD_NUMBER,
        pb.FeatureDrift.VAR_RATIO_FIELD_NUMBER,
        pb.FeatureDrift.SYMMETRIC_KL_FIELD_NUMBER,
    )
]


def device(placement: Placement) -> pb.GetDeviceResponse:
    """Where the server computes."""
    return pb.GetDeviceResponse(
        device=str(placement.device),
        name=device_metrics.name_of(placement.device),
        placings=[
            pb.GetDeviceResponse.Placing(
                operation=operation.value,
                from_bytes=-1 if math.isinf(size) else int(size),
                trials=[
                    pb.GetDeviceResponse.Trial(
                        size_bytes=one.size_bytes, cpu_seconds=one.cpu_seconds, device_seconds=one.device_seconds
                    )
                    for one in placement.trials
                    if one.operation is operation
                ],
            )
            for operation, size in placement.from_bytes.items()
        ],
    )


def activity(doing: Doing, prefixes: Sequence[str]) -> activity_pb2.Activity:
    """What the server is doing, for one who may read names that begin so."""
    message = activity_pb2.Activity(
        server=activity_pb2.Server(
            release=doing.about.release,
            store=doing.about.store,
            device=doing.about.device,
            not_ready=doing.not_ready,
            readable_prefixes=prefixes,
        ),
        load=[_load(load) for load in doing.load],
        normalizers=[_active(head, rate) for head, rate in doing.normalizers],
        producers=[_producer(one, rate) for one, rate in doing.contributors],
        rounds=[activity_pb2.OpenRound(**one._asdict()) for one in doing.rounds],
    )
    _set(message.server.start_time, doing.about.started_at)
    if doing.last_commit_at:
        _set(message.server.last_commit_time, doing.last_commit_at)
    return message


def history(points: Sequence[Point], contributors: Sequence[tuple[Contributor, float]]) -> pb.GetHistoryResponse:
    """How a normalizer came to be what it is."""
    response = pb.GetHistoryResponse(producers=[_producer(one, rate) for one, rate in contributors])
    for point in points:
        told = response.points.add(
            version=point.version,
            count=point.num_rows,
            num_batches=point.num_batches,
            mean=activity_pb2.Spread(**point.mean._asdict()),
            std=activity_pb2.Spread(**point.std._asdict()),
        )
        _set(told.time, point.at)
    return response


def _load(load: Load) -> activity_pb2.Load:
    told = load._asdict()
    at = told.pop("at")
    message = activity_pb2.Load(**told)
    _set(message.time, at)
    return message


def _active(head: Head, rate: float) -> activity_pb2.ActiveNormalizer:
    message = activity_pb2.ActiveNormalizer(
        name=head.name,
        version=head.version,
        contributions_per_second=rate,
        num_features=head.num_features,
        count=head.num_rows,
    )
    _set(message.update_time, head.updated_at)
    return message


def _producer(one: Contributor, rate: float) -> activity_pb2.ActiveProducer:
    message = activity_pb2.ActiveProducer(
        producer_id=one.producer.short,
        normalizer=one.normalizer,
        sequence=one.sequence,
        contributions=one.merged,
        duplicates=one.duplicates,
        contributions_per_second=rate,
    )
    _set(message.last_time, one.last_at)
    return message


def _set(timestamp: Timestamp, seconds: float) -> None:
    """Seconds since the epoch, to the microsecond, as the store has them."""
    timestamp.FromMicroseconds(round(seconds * 1e6))
