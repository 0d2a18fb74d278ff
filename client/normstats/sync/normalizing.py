# Generated from normstats/aio/normalizing.py by tools/generate_sync.py: do not edit.
"""A normalization: one message where it is small, chunks of rows on a stream where it is large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt

from normstats import chunking, memory, requests, specs
from normstats.arrays import Output, Payload, output_of, payload_of
from normstats.backoff import Backoff
from normstats.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NormstatsError,
    NotFound,
    Unavailable,
    from_grpc,
    may_begin_again,
)
from normstats.moments import Moments, batches_of
from normstats.options import Mode, NormalizeOptions
from normstats.sync import concurrency
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried

if TYPE_CHECKING:
    from normstats.sync.connection import Connection
    from normstats.sync.shared_memory import SharedMemory

Array: TypeAlias = npt.NDArray[Any]

# Arrays from this size on are worth the allocator's while.
_LARGE_BYTES = 1 << 16
# Chunks on their way to the server and back.
_WINDOW = 8
# Of many arrays: messages of several small ones, and large ones, that are on their way at once.
_MESSAGES_AT_ONCE, _ARRAYS_AT_ONCE = 4, 32
# Why a server that has just begun refuses memory that another lent.
_NO_SUCH_REGION = "NO_SUCH_REGION"


def normalize(
    connection: Connection, x: Any, target: specs.Spec | str, options: NormalizeOptions, timeout: float | None
) -> Any:
    """Normalize an array; see Client.normalize."""
    payload = payload_of(x)
    requests.mode_of(options.mode)
    if payload.values.nbytes > _LARGE_BYTES:
        memory.keep()
        if connection.memory is not None:
            return _in_shared_memory(connection, connection.memory, payload, target, options, timeout)
    if payload.values.nbytes > chunking.CHUNK_BYTES:
        spec = connection.spec_of(target, timeout) if isinstance(target, str) else target
        mode = chunking.effective_mode(spec, options.mode, named=isinstance(target, str))
        if chunking.goes_in_chunks(payload, spec, mode, options):
            requests.check_padding(payload, options)
            moments = _moments(connection, x, target, spec, mode, options, timeout)
            opening = requests.opening(target, chunking.of_rank(spec, len(payload.shape)), mode, options, moments)
            total = connection.timeout * max(1.0, payload.values.nbytes / 2**26) if timeout is None else timeout
            return _in_chunks(connection, opening, payload, options, total)
    request = requests.plain(payload, target, options) or _request(connection, payload, target, options)
    if options.out is None:
        return _output(payload, connection.normalize(request, timeout))
    output = Output(payload, options.out)
    reply = connection.normalize(request, timeout)
    output.add(reply.message.output, reply.data)
    return output.value()


def _in_shared_memory(
    connection: Connection,
    shared: SharedMemory,
    payload: Payload,
    target: specs.Spec | str,
    options: NormalizeOptions,
    timeout: float | None,
) -> Any:
    """Where the server sees the array too; again, if it is another server by then.

    Never in place: what has been overwritten could not be tried again.
    """
    seconds = connection.timeout if timeout is None else timeout
    deadline = monotonic() + seconds
    request, output = _request(connection, payload, target, options), Output(payload, options.out)
    request.data = b""
    while True:
        left = max(0.0, deadline - monotonic())
        held, place = _placed(shared, payload.values, left)
        result = None if output.overwrites else output.memory
        result_place = None if result is None else shared.place_of(result)
        if result is None or result_place is None:
            result = shared.array(output.size_bytes, left)
            result_place = shared.place_of(result)
        request.message.input_place.CopyFrom(place)
        request.message.output_place.CopyFrom(result_place or pb.Place())
        try:
            connection.normalize(request, left)
        except NotFound as error:
            if error.reason != _NO_SUCH_REGION or monotonic() >= deadline:
                raise
            shared.lost(place.region)
            shared.lost(request.message.output_place.region)
            continue
        except NormstatsError as error:
            if isinstance(error, Cancelled | DeadlineExceeded | Unavailable):
                shared.withhold(held, result)
            raise
        except BaseException:
            shared.withhold(held, result)
            raise
        output.lies_in(result)
        return output.value()


def _placed(shared: SharedMemory, values: Array, timeout: float) -> tuple[Array, pb.Place]:
    """Where an array lies in the server's memory: itself, or a copy."""
    if (place := shared.place_of(values)) is not None:
        return values, place
    held = shared.array(values.nbytes, timeout)
    np.copyto(held, values.reshape(-1).view(np.uint8))
    return held, shared.place_of(held) or pb.Place()


def normalize_many(
    connection: Connection,
    arrays: Sequence[Any],
    target: specs.Spec | str,
    options: NormalizeOptions,
    timeout: float | None,
) -> list[Any]:
    """Normalize arrays, small ones several to a message; see Client.normalize_many."""
    payloads = [payload_of(x) for x in arrays]
    small = [index for index, payload in enumerate(payloads) if payload.values.nbytes <= chunking.SMALL_BYTES]
    large = [index for index, payload in enumerate(payloads) if payload.values.nbytes > chunking.SMALL_BYTES]
    outputs = dict.fromkeys(range(len(arrays)))

    def together(group: Sequence[int]) -> None:
        asked = [_request(connection, payloads[index], target, options) for index in group]
        for index, request, reply in zip(group, asked, connection.normalize_many(asked, timeout), strict=True):
            if isinstance(reply, Unavailable):
                reply = connection.normalize(request, timeout)
            if isinstance(reply, Exception):
                raise reply
            outputs[index] = _output(payloads[index], reply)

    def alone(index: int) -> None:
        outputs[index] = normalize(connection, arrays[index], target, options, timeout)

    at_once = chunking.TENSORS_AT_ONCE
    groups = [small[start : start + at_once] for start in range(0, len(small), at_once)]
    concurrency.each(together, groups, _MESSAGES_AT_ONCE)
    concurrency.each(alone, large, _ARRAYS_AT_ONCE)
    return list(outputs.values())


def _request(
    connection: Connection, payload: Payload, target: specs.Spec | str, options: NormalizeOptions
) -> Carried[pb.NormalizeRequest]:
    request = requests.normalize(payload, target, options)
    if options.mode == "train":
        request.message.producer_id = connection.producer.id
        request.message.sequence = connection.producer.next_sequence()
    return request


def _output(payload: Payload, reply: Carried[Any]) -> Any:
    return output_of(payload, reply.message.output, reply.data)


def _moments(
    connection: Connection,
    x: Any,
    target: specs.Spec | str,
    spec: specs.Spec,
    mode: Mode,
    options: NormalizeOptions,
    timeout: float | None,
) -> Moments | None:
    """Statistics that span rows are taken here, to go ahead of the chunks; in TRAIN mode they are contributed."""
    if mode == "train":
        if not isinstance(target, str):
            raise InvalidArgument("mode is 'train'; expected a normalizer's name, to contribute to", field="mode")
        requests.running_spec(target, spec)
    if not isinstance(spec, specs.RunningSpec) or mode == "eval":
        return None
    (moments,) = batches_of(x, spec, lengths=options.lengths, mask=options.mask)
    if mode == "train" and isinstance(target, str):
        connection.contribute([requests.of_moments(target, [moments])], timeout)
    return moments


def _in_chunks(
    connection: Connection,
    opening: Carried[pb.NormalizeStreamRequest],
    payload: Payload,
    options: NormalizeOptions,
    timeout: float,
) -> Any:
    """All chunks; when the connection breaks or memory is full, again from the beginning, until the timeout."""
    deadline, backoff = monotonic() + timeout, Backoff()
    while True:
        try:
            return _once(connection, opening, payload, options, deadline)
        except grpc.RpcError as error:
            wait = backoff.next_seconds()
            if not may_begin_again(error) or monotonic() + wait >= deadline:
                raise from_grpc(error) from error
            concurrency.sleep(wait)


def _once(
    connection: Connection,
    opening: Carried[pb.NormalizeStreamRequest],
    payload: Payload,
    options: NormalizeOptions,
    deadline: float,
) -> Any:
    window, output = concurrency.Semaphore(_WINDOW), Output(payload, options.out)
    ended = False

    def frames() -> Iterator[Carried[pb.NormalizeStreamRequest]]:
        yield opening
        for start, stop in chunking.cuts(payload):
            window.acquire()
            if ended:
                return
            yield requests.chunk(payload, options, start, stop)

    call = connection.stub.NormalizeStream(frames(), timeout=max(0.0, deadline - monotonic()))
    try:
        for reply in call:
            output.add(reply.message.output, reply.data)
            window.release()
    finally:
        ended = True
        window.release()
        call.cancel()
    return output.value()
