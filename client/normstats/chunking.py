"""Which arrays go in chunks of rows, and where they are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from normstats import specs
from normstats.arrays import Payload
from normstats.options import Mode, NormalizeOptions
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried

# Messages of about 1 MiB on a stream are 5 to 10 times as fast as one large message.
CHUNK_BYTES = 1 << 20
# Small tensors go together, so many to a message: what a message costs is then more than what they cost themselves.
TENSORS_AT_ONCE, SMALL_BYTES = 16, 1 << 16
# A TRAIN batch up to this size goes whole, and the server takes its moments.
MAX_TRAIN_BYTES = 32 << 20


def effective_mode(spec: specs.Spec, mode: Mode | None, *, named: bool) -> Mode:
    """The mode that the server will take: EVAL where there are running statistics, BATCH otherwise."""
    if mode is not None:
        return mode
    seeded = isinstance(spec, specs.BatchNorm) and spec.running_mean is not None
    return "eval" if specs.keeps_statistics(spec) and (named or seeded) else "batch"


def rows_are_independent(spec: specs.Spec, rank: int) -> bool:
    """Whether slices of axis 0 can be normalized apart, once statistics over all of them are known."""
    match spec:
        case specs.BatchNorm() | specs.Standardize() | specs.MinMax():
            ghosts = isinstance(spec, specs.BatchNorm) and spec.virtual_batch_size
            return not ghosts and -rank <= spec.channel_axis < rank and spec.channel_axis % rank != 0
        case specs.LayerNorm() | specs.RMSNorm():
            return not isinstance(spec.normalized_shape, int) and len(spec.normalized_shape) < rank
        case specs.MeanVarianceNorm(axes=axes):
            return all(_is_inner(axis, rank) for axis in axes)
        case specs.LpNorm(axis=axis):
            return _is_inner(axis, rank)
    return True


def _is_inner(axis: int, rank: int) -> bool:
    """Whether it is an axis other than the first; one that does not exist is none, and is the server's to refuse."""
    return -rank <= axis < rank and axis % rank != 0


def goes_in_chunks(payload: Payload, spec: specs.Spec, mode: Mode, options: NormalizeOptions) -> bool:
    """Whether an array of more than a chunk can be cut, and is better for it."""
    rank = len(payload.shape)
    if rank < 2 or payload.shape[0] < 2 or not isinstance(options.style, str | None):
        return False
    if mode == "train" and not _trains_in_chunks(payload, spec, options):
        return False
    return rows_are_independent(spec, rank)


def _trains_in_chunks(payload: Payload, spec: specs.Spec, options: NormalizeOptions) -> bool:
    """Whether contributing first and then normalizing as a BATCH is the same; the server refuses the rest unmerged."""
    corrected = isinstance(spec, specs.BatchNorm) and spec.renorm is not None
    refused = options.inverse or options.snapshot or options.style is not None
    return payload.values.nbytes > MAX_TRAIN_BYTES and not corrected and not refused


def of_rank(spec: specs.Spec, rank: int) -> specs.Spec:
    """The same spec with axes counted from the front: the server sees chunks, not the whole array."""
    match spec:
        case specs.MeanVarianceNorm(axes=axes):
            return replace(spec, axes=tuple(axis % rank for axis in axes))
        case specs.LpNorm(axis=axis):
            return replace(spec, axis=axis % rank)
    return spec


def goes_by_stream(request: Carried[pb.NormalizeRequest]) -> bool:
    """Whether a request is small enough for a stream that others go by too: a chunk, or less."""
    return len(request.data) <= CHUNK_BYTES and not request.message.style_data


def goes_with_others(request: Carried[pb.NormalizeRequest]) -> bool:
    """Whether such a request is small enough to share a message."""
    return len(request.data) <= SMALL_BYTES


def cuts(payload: Payload) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about a chunk's size."""
    step = max(1, CHUNK_BYTES // max(1, payload.row_bytes))
    for start in range(0, payload.shape[0], step):
        yield start, min(start + step, payload.shape[0])
