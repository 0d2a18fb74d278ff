"""Between rows of the tables and records."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Row

from normcore.running import Running
from normserver import codec
from normserver.records import Record, SnapshotRecord
from normstats.specs import RunningSpec, Spec
from normstats.v1 import resources_pb2 as pb
from normstats.wire import spec as spec_wire


def record_of(row: Row[Any]) -> Record:
    """The normalizer that a row holds."""
    spec = _spec_of(row.spec)
    running = codec.StoredRunning(row.running, spec.num_features) if isinstance(spec, RunningSpec) else None
    return Record(row.name, spec, row.version, running, row.frozen, row.created_at, row.updated_at)


def row_of(record: Record) -> dict[str, Any]:
    """The row that holds a normalizer."""
    return {
        "name": record.name,
        "spec": spec_wire.to_proto(record.spec).SerializeToString(deterministic=True),
        "version": record.version,
        "running": None if record.running is None else _running_bytes(record.running),
        "frozen": record.frozen,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }


def advance_of(record: Record) -> dict[str, Any]:
    """The parameters of the statement that writes what a commit changes."""
    assert record.running is not None, "only these are contributed to"
    return {
        "key": record.name,
        "new_running": _running_bytes(record.running),
        "new_version": record.version,
        "new_updated_at": record.updated_at,
    }


def snapshot_of(row: Row[Any]) -> SnapshotRecord:
    """The snapshot that a row holds."""
    message = pb.RunningState.FromString(row.running)
    num_features = len(message.moments.mean) // 8
    running = codec.decode_running(message, num_features, "running")
    return SnapshotRecord(row.normalizer, row.tag, row.version, running, row.created_at)


def snapshot_row(snapshot: SnapshotRecord) -> dict[str, Any]:
    """The row that holds a snapshot."""
    return {
        "normalizer": snapshot.normalizer,
        "tag": snapshot.tag,
        "version": snapshot.version,
        "running": _running_bytes(snapshot.running),
        "created_at": snapshot.created_at,
    }


@lru_cache(maxsize=1024)
def _spec_of(data: bytes) -> Spec:
    """A spec, which is frozen: many normalizers have the same."""
    return spec_wire.from_proto(pb.Spec.FromString(data))


def _running_bytes(running: Running) -> bytes:
    return codec.encode_running(running).SerializeToString()
