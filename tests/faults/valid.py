"""A request or several of every RPC that are right, for others to be made of. A stream's are its frames in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import tensor_pb2
from normstats.wire import spec as spec_wire
from tests.contract import contribution, described, f64, moments_message

# Normalizers of three features that may come to harm: those that streams are told of stand in a room of their own, as
# what a broken stream has sent may be committed later.
OPEN, STREAMED = "open", "streamed"
SPECS: dict[str, specs.Spec] = {
    "running": specs.Standardize(3),
    "batch": specs.BatchNorm(3, weight=[1.0, 2.0, 3.0]),
    "layer": specs.LayerNorm(3),
}
# A tag that those with statistics have, and a name that mostly is free.
TAG, NEW = "kept", "open/new"
INLINE: tuple[specs.Spec, ...] = (
    specs.BatchNorm(3, virtual_batch_size=2),
    specs.LayerNorm(3, weight=[1.0, 2.0, 3.0]),
    specs.RMSNorm(3),
    specs.GroupNorm(3, 3),
    specs.InstanceNorm(3),
    specs.MeanVarianceNorm(axes=(0,)),
    specs.LpNorm(2.0, axis=1),
    specs.LocalResponseNorm(2),
    specs.Standardize(3, half_life=10.0, channel_axis=1),
    specs.MinMax(3, channel_axis=1),
)
# Normalized over positions, of which X has none.
BY_SAMPLE = (specs.InstanceNorm, specs.LocalResponseNorm)
X = np.arange(12, dtype=np.float32).reshape(4, 3)
SEQUENCES = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)


def requests(producer: bytes, region: bytes) -> dict[str, Sequence[Sequence[Message]]]:
    """By the RPC's name. `producer` is 16 bytes that nobody had before, `region` some shared memory."""
    running, batch = f"{OPEN}/running", f"{OPEN}/batch"
    snapshot = {"normalizer": running, "tag": TAG}
    return {
        "Normalize": [[request] for request in tensors(OPEN, producer, region)],
        "NormalizeMany": [[pb.NormalizeManyRequest(requests=tensors(OPEN, producer, region)[::5])]],
        "UpdateRunningStats": [
            [update(producer, contribution(running, X), contribution(batch, X))],
            [update(producer, pb.Contribution(normalizer=batch, moments={"batches": [moments_message(X)] * 2}))],
            [update(producer, raw(running, sample_weights=f64(1, 2, 0, 0.5)), raw(batch), data=X.tobytes() * 2)],
            [update(producer, raw(running, padding=mask(4, 1)), data=X.tobytes())],
        ],
        "GetRunningStats": [
            [pb.GetRunningStatsRequest(normalizer=running, include_state=True)],
            [pb.GetRunningStatsRequest(normalizer=batch, snapshot=TAG)],
        ],
        "WatchRunningStats": [[pb.WatchRunningStatsRequest(normalizer=running)]],
        "GetHistory": [[pb.GetHistoryRequest(normalizer=running, limit=2)]],
        "GetActivity": [[pb.GetActivityRequest(prefix="open/", limit=2, seconds=2)]],
        "WatchActivity": [[pb.WatchActivityRequest(prefix="open/", limit=2, seconds=2)]],
        "GetDevice": [[pb.GetDeviceRequest()]],
        "CreateNormalizer": [
            [pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(spec), exist_ok=True, state=state)]
            for spec in (*SPECS.values(), *INLINE)
            for name in (NEW, f"{OPEN}/{producer.hex()}")
            for state in ([None, seen()] if isinstance(spec, specs.RunningSpec) else [None])
        ],
        "GetNormalizer": [[pb.GetNormalizerRequest(name=running)]],
        "ListNormalizers": [
            [pb.ListNormalizersRequest(prefix="open/", page_size=2, page_token="b3Blbi9iYXRjaA==", contains="R")]
        ],
        "UpdateNormalizer": [[pb.UpdateNormalizerRequest(name=batch, weight=f64(1, 2, 3), bias=b"", frozen=False)]],
        "DeleteNormalizer": [[pb.DeleteNormalizerRequest(name=NEW)]],
        "CreateSnapshot": [[pb.CreateSnapshotRequest(normalizer=running, tag=producer.hex(), keep_last=3)]],
        "ListSnapshots": [[pb.ListSnapshotsRequest(normalizer=running, page_size=1, page_token="a2VwdA==")]],
        "RestoreSnapshot": [[pb.RestoreSnapshotRequest(**snapshot)]],
        "DeleteSnapshot": [[pb.DeleteSnapshotRequest(**snapshot)]],
        "CompareSnapshots": [
            [pb.CompareSnapshotsRequest(normalizer=running, base_tag=TAG, limit=2)],
            [pb.CompareSnapshotsRequest(normalizer=running, base_tag=TAG, tag=TAG)],
        ],
        "Check": [[health_pb2.HealthCheckRequest()]],
        "Watch": [[health_pb2.HealthCheckRequest()]],
    } | streams(producer, region)


def streams(producer: bytes, region: bytes) -> dict[str, Sequence[Sequence[Message]]]:
    """Those of the RPCs whose requests are streams."""
    running, batch = f"{STREAMED}/running", f"{STREAMED}/batch"
    opened = pb.UpdateRunningStatsStreamRequest(open={"producer_id": producer})
    return {
        "NormalizeManyStream": [
            [pb.NormalizeManyStreamRequest(id=number, requests=[request])]
            for number, request in enumerate(tensors(STREAMED, producer, region))
        ],
        "NormalizeStream": [
            chunks(normalizer=running),
            chunks(spec=spec_wire.to_proto(specs.LayerNorm(3))),
            chunks(normalizer=batch, mode=pb.MODE_BATCH, moments=moments_message(np.concatenate((X, X)))),
        ],
        "ShareMemory": [[pb.ShareMemoryRequest(allocate_bytes=4096)] * 2],
        "UpdateRunningStatsStream": [
            [opened, frame(1, contribution(running, X)), frame(2, contribution(batch, X))],
            [opened, frame(1, raw(batch), data=X.tobytes()), frame(1, raw(batch), data=X.tobytes())],
        ],
        "SynchronizeStats": [
            [join(producer, normalizer=running), part(1), part(2)],
            [join(producer, on_missing=2, quorum_count=1, round_timeout={"seconds": 1}), part(1)],
        ],
    }


def tensors(room: str, producer: bytes, region: bytes) -> list[pb.NormalizeRequest]:
    """One tensor in each of the ways that there are."""
    running, batch, layer = (f"{room}/{name}" for name in SPECS)
    style = {"style_tensor": described(SEQUENCES[:1]), "style_data": SEQUENCES[:1].tobytes()}
    placed = pb.Place(region=region, offset_bytes=64)
    lengths = tensor_pb2.Padding(lengths={"values": [4, 2]})
    adaptive, own = spec_wire.to_proto(specs.AdaptiveInstanceNorm()), {"producer_id": producer, "sequence": 1}
    return [
        of(X, normalizer=running),
        of(X, normalizer=running, inverse=True, mode=pb.MODE_EVAL),
        of(X, normalizer=running, snapshot=TAG),
        of(X.astype(np.int16), normalizer=batch, mode=pb.MODE_BATCH, padding=mask(4)),
        of(X, normalizer=running, mode=pb.MODE_TRAIN, **own),
        of(SEQUENCES, normalizer=batch, mode=pb.MODE_TRAIN, padding=lengths, **own),
        of(X, normalizer=layer),
        of(SEQUENCES, spec=adaptive, **style),
        of(SEQUENCES, spec=adaptive, style_normalizer=running),
        pb.NormalizeRequest(normalizer=running, input=described(X), input_place=placed, output_place=placed),
        *(of(X[..., None] if isinstance(one, BY_SAMPLE) else X, spec=spec_wire.to_proto(one)) for one in INLINE),
    ]


def of(x: np.ndarray, **fields: Any) -> pb.NormalizeRequest:
    return pb.NormalizeRequest(input=described(x), data=x.tobytes(), **fields)


def chunks(**fields: Any) -> list[Message]:
    """A stream of X, twice."""
    chunk = pb.NormalizeStreamRequest(chunk={"input": described(X)}, data=X.tobytes())
    return [pb.NormalizeStreamRequest(open=pb.NormalizeStreamRequest.Open(**fields)), chunk, chunk]


def mask(*shape: int) -> tensor_pb2.Padding:
    return tensor_pb2.Padding(mask={"shape": shape, "bits": bytes([1, 0] * (int(np.prod(shape)) // 2))})


def raw(name: str, **fields: Any) -> pb.Contribution:
    return pb.Contribution(normalizer=name, raw=pb.Contribution.RawBatch(input=described(X), **fields))


def update(producer: bytes, *contributions: pb.Contribution, data: bytes = b"") -> Message:
    return pb.UpdateRunningStatsRequest(producer_id=producer, sequence=1, contributions=contributions, data=data)


def frame(sequence: int, *contributions: pb.Contribution, data: bytes = b"") -> Message:
    taken = pb.UpdateRunningStatsStreamRequest.Update(sequence=sequence, contributions=contributions)
    return pb.UpdateRunningStatsStreamRequest(update=taken, data=data)


def join(member: bytes, **fields: Any) -> Message:
    """A group of one, which waits for nobody."""
    joined = pb.SynchronizeStatsRequest.Join(group=f"{STREAMED}/{member.hex()}", member_id=member, size=1, **fields)
    return pb.SynchronizeStatsRequest(join=joined)


def part(number: int) -> Message:
    return pb.SynchronizeStatsRequest(part={"round": number, "moments": moments_message(X), "vector": f64(1, 2)})


def seen() -> Any:
    """What a normalizer holds that has seen X."""
    return {"moments": moments_message(X), "count": f64(4), "num_batches": 1, "reference_time": {"seconds": 1}}
