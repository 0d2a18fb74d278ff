"""Between rows of the tables and records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from zlib import crc32

from sqlalchemy import Row

from normserver import codec
from normserver.records import (
    FEATURE_BYTES,
    PRESENT,
    Head,
    Initial,
    Record,
    SnapshotHead,
    bare,
    parameter_bytes,
    stored_bytes,
    width_of,
)
from normstats.specs import Spec
from normstats.v1 import resources_pb2 as pb
from normstats.wire import spec as spec_wire


def head_of(row: Row[Any]) -> Head:
    """The normalizer that a row holds, with its arrays if they were read."""
    parameters = getattr(row, "parameters", None)
    spec = _spec_of(row.spec) if parameters is None else spec_wire.from_proto(pb.Spec.FromString(parameters))
    times, counts = (row.created_at, row.updated_at), (row.num_rows, row.num_batches)
    return Head(row.name, spec, row.version, row.frozen, *times, *counts, row.creator)


def row_of(head: Head) -> dict[str, Any]:
    """The row that holds a normalizer."""
    whole = _spec_bytes(head.spec) if parameter_bytes(head.spec) else None
    spec = _spec_bytes(bare(head.spec))
    return {
        "name": head.name,
        "spec": spec,
        "version": head.version,
        "frozen": head.frozen,
        "num_rows": head.num_rows,
        "num_batches": head.num_batches,
        "created_at": head.created_at,
        "updated_at": head.updated_at,
        "creator": head.creator,
        "stored_bytes": stored_bytes(head.spec),
        "checksum": _checksum_of(head),
        "spec_checksum": spec_checksum(spec, whole),
        "parameters": whole,
    }


def advance_of(record: Record) -> dict[str, Any]:
    """The parameters of the statement that writes what a commit changes of a normalizer's row."""
    head = record.head
    return {
        "key": head.name,
        "new_version": head.version,
        "new_updated_at": head.updated_at,
        "new_num_rows": head.num_rows,
        "new_num_batches": head.num_batches,
        "new_checksum": _checksum_of(head),
    }


def pieces_of(record: Record) -> Iterator[dict[str, Any]]:
    """The rows that hold a normalizer's statistics: none where they are as the spec has them."""
    if record.running is not None and not isinstance(record.running, Initial):
        for start, data in codec.encode_pieces(record.running):
            row = {"normalizer": record.name, "tag": PRESENT, "start": start, "running": data}
            yield row | {"checksum": crc32(data)}


def snapshot_of(row: Row[Any]) -> SnapshotHead:
    """The snapshot that a row holds."""
    return SnapshotHead(row.normalizer, row.tag, row.version, row.num_rows, row.num_batches, row.created_at)


def snapshot_row(snapshot: SnapshotHead, spec: Spec, creator: str) -> dict[str, Any]:
    """The row that holds a snapshot of a normalizer of this spec."""
    row: dict[str, Any] = {
        "normalizer": snapshot.normalizer,
        "tag": snapshot.tag,
        "version": snapshot.version,
        "num_rows": snapshot.num_rows,
        "num_batches": snapshot.num_batches,
        "created_at": snapshot.created_at,
        "creator": creator,
        "stored_bytes": FEATURE_BYTES * width_of(spec),
    }
    return row | {"checksum": checksum(*row.values())}


def checksum(*values: object) -> int:
    """The CRC-32 of what a row says, as both databases give it back."""
    return crc32(repr(values).encode())


def spec_checksum(spec: bytes, parameters: bytes | None) -> int:
    """The CRC-32 of a spec with its arrays."""
    return crc32(parameters or b"", crc32(spec))


def _checksum_of(head: Head) -> int:
    counts, times = (head.num_rows, head.num_batches), (head.created_at, head.updated_at)
    return checksum(head.name, head.version, head.frozen, *counts, *times, head.creator, stored_bytes(head.spec))


@lru_cache(maxsize=1024)
def _spec_of(data: bytes) -> Spec:
    """A spec without arrays: many normalizers have the same."""
    return spec_wire.from_proto(pb.Spec.FromString(data))


def _spec_bytes(spec: Spec) -> bytes:
    return spec_wire.to_proto(spec).SerializeToString(deterministic=True)
