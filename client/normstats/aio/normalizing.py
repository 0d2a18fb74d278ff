"""A normalization: one message where it is small, chunks of rows on a stream where it is large."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc

from normstats import chunking, memory, requests, specs
from normstats.aio import concurrency
from normstats.arrays import Output, Payload, payload_of
from normstats.backoff import Backoff
from normstats.errors import InvalidArgument, connection_broke, from_grpc
from normstats.moments import Moments, batches_of
from normstats.options import Mode, NormalizeOptions
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried

if TYPE_CHECKING:
    from normstats.aio.connection import AsyncConnection

# Arrays from this size on are worth the allocator's while.
_LARGE_BYTES = 1 << 16
# Chunks on their way to the server and back.
_WINDOW = 8


async def normalize(
    connection: AsyncConnection, x: Any, target: specs.Spec | str, options: NormalizeOptions, timeout: float | None
) -> Any:
    """Normalize an array; see Client.normalize."""
    payload = payload_of(x)
    requests.mode_of(options.mode)
    if payload.values.nbytes > _LARGE_BYTES:
        memory.keep()
    if payload.values.nbytes > chunking.CHUNK_BYTES:
        spec = await connection.spec_of(target, timeout) if isinstance(target, str) else target
        mode = chunking.effective_mode(spec, options.mode, named=isinstance(target, str))
        if chunking.goes_in_chunks(payload, spec, mode, options):
            requests.check_padding(payload, options)
            moments = await _moments(connection, x, target, spec, mode, options, timeout)
            opening = requests.opening(target, chunking.of_rank(spec, len(payload.shape)), mode, options, moments)
            total = connection.timeout * max(1.0, payload.values.nbytes / 2**26) if timeout is None else timeout
            return await _in_chunks(connection, opening, payload, options, total)
    request = requests.normalize(payload, target, options)
    if options.mode == "train":
        request.message.producer_id = connection.producer.id
        request.message.sequence = connection.producer.next_sequence()
    reply = await connection.call(connection.stub.Normalize, request, timeout)
    output = Output(payload)
    output.add(reply.message.output, reply.data)
    return output.value()


async def _moments(
    connection: AsyncConnection,
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
        await connection.contribute([requests.of_moments(target, [moments])], timeout)
    return moments


async def _in_chunks(
    connection: AsyncConnection,
    opening: Carried[pb.NormalizeStreamRequest],
    payload: Payload,
    options: NormalizeOptions,
    timeout: float,
) -> Any:
    """All chunks; when the connection breaks, again from the beginning, until the timeout."""
    deadline, backoff = monotonic() + timeout, Backoff()
    while True:
        try:
            return await _once(connection, opening, payload, options, deadline)
        except grpc.RpcError as error:
            wait = backoff.next_seconds()
            if not connection_broke(error) or monotonic() + wait >= deadline:
                raise from_grpc(error) from error
            await concurrency.sleep(wait)


async def _once(
    connection: AsyncConnection,
    opening: Carried[pb.NormalizeStreamRequest],
    payload: Payload,
    options: NormalizeOptions,
    deadline: float,
) -> Any:
    window, output = concurrency.Semaphore(_WINDOW), Output(payload)
    ended = False

    async def frames() -> AsyncIterator[Carried[pb.NormalizeStreamRequest]]:
        yield opening
        for start, stop in chunking.cuts(payload):
            await window.acquire()
            if ended:
                return
            yield requests.chunk(payload, options, start, stop)

    call = connection.stub.NormalizeStream(frames(), timeout=max(0.0, deadline - monotonic()))
    try:
        async for reply in call:
            output.add(reply.message.output, reply.data)
            window.release()
    finally:
        ended = True
        window.release()
        call.cancel()
    return output.value()
