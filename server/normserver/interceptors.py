"""Around every call: who may come in is let in, errors become statuses, calls are counted, timed and logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from inspect import iscoroutinefunction
from typing import Any, TypeAlias

import grpc
from grpc.aio import ServerInterceptor, ServicerContext
from grpc_status import rpc_status

from normserver import audit, calls, status
from normserver.calls import Call
from normserver.door import Door, Received, receiving
from normserver.errors import DeadlineExceeded, ServiceError
from normserver.observing import Observed, Observer
from normserver.stream_memory import SMALL_BYTES, StreamMemory
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import carried
from normstats.wire.carried import Carried

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "ServicerContext[Any, Any]"


class Edge(ServerInterceptor):
    """The edge of the service: the one place that every call passes."""

    def __init__(
        self,
        observer: Observer,
        door: Door,
        stream_memory: StreamMemory,
        *,
        default_deadline_seconds: float = 300.0,
    ) -> None:
        self._observer = observer
        self._door = door
        self._stream_memory = stream_memory
        self._default_deadline_seconds = default_deadline_seconds
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Let the call in, or answer it before its message is read.

        A method that does not exist has no handler, and gRPC says so itself.
        """
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = str(handler_call_details.method)
        streams = handler.request_streaming or handler.response_streaming
        metadata = handler_call_details.invocation_metadata
        try:
            call = self._observer.trace(self._door.enter(path, metadata, streams=streams), metadata)
        except ServiceError as error:
            return self._refusing(self._observer.trace(Call(path, streams), metadata), error)
        this = asyncio.current_task()
        assert this is not None, "a call is served by a task of its own"
        this.add_done_callback(lambda _: self._door.leave(call))
        call.entered_at = this.get_loop().time()
        if streams:
            call.task = this
            expected_bytes = _EXPECTED_BYTES.get(call.method, ())
            call.share = self._stream_memory.share(this, expected_bytes, rests=call.method in _RESTING)
        calls.begin(call)
        if path not in self._wrapped:
            self._wrapped[path] = self._wrap(path, handler)
        return self._wrapped[path]

    def _wrap(self, path: str, handler: Any) -> Handler:
        method = path.rpartition("/")[2]
        return self._stream(method, handler) if handler.response_streaming else self._unary(method, handler)

    def _refusing(self, call: Call, error: ServiceError) -> Handler:
        """A handler that reads nothing: a stream's, whatever the method is, as a unary one's message is read first."""

        async def refuse(_: Any, context: Context) -> None:
            with self._observer.observed(call) as observed:
                await _abort(context, observed, call.method, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _unary(self, method: str, handler: Any) -> Handler:
        async def answer(request: Any, context: Context) -> Any:
            if context.time_remaining() is not None:
                return await handler.unary_unary(request, context)
            try:
                async with asyncio.timeout_at(_this_call().entered_at + self._default_deadline_seconds):
                    return await handler.unary_unary(request, context)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"not done within the {self._default_deadline_seconds:g} s that calls without a deadline have",
                    reason="DEFAULT_DEADLINE",
                ) from None

        async def serve(received: Received, context: Context) -> Any:
            call = _this_call()
            with self._observer.observed(call) as observed:
                try:
                    self._door.recognize(call, context)
                    request = self._door.let_in(call, received)
                    reply = await answer(request, context)
                    if isinstance(reply, bytes):
                        self._door.hold(call, len(reply))
                    audit.tell(call, request, reply)
                    return reply
                except Exception as error:
                    await _abort(context, observed, method, error)

        return grpc.unary_unary_rpc_method_handler(serve, *_codecs(method, handler))

    def _stream(self, method: str, handler: Any) -> Handler:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        read, serialize = _codecs(method, handler)

        async def serve(request: Any, context: Context) -> None:
            call, answers = _this_call(), _Answers(context)
            with self._observer.observed(call) as observed:
                try:
                    self._door.recognize(call, context)
                    many = handler.request_streaming
                    requests = self._received(call, context, read) if many else self._door.let_in(call, read(request))
                    if iscoroutinefunction(inner):  # it writes itself, as its answers come in no order
                        await inner(requests, answers)
                    else:
                        async with aclosing(inner(requests, context)) as responses:  # what a stream holds ends with it
                            await answers.write_all(responses)
                    audit.tell(call, None, None)
                except asyncio.CancelledError:
                    if call.ended is None:
                        raise
                    await _abort(context, observed, method, call.ended)
                except Exception as error:
                    await _abort(context, observed, method, error)

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(serve, None, serialize)

    async def _received(self, call: Call, context: Context, read: Callable[[bytes], Received]) -> AsyncIterator[Any]:
        """What a stream's caller sends, each message when there is memory for it.

        Nothing of it is kept here, nor by gRPC, as by the iterator that it offers.
        """
        share, copies = call.share, _COPIES.get(call.method, 0)
        assert share is not None, "a stream has a share"
        while True:
            if copies:
                await share.may_read()
            if (serialized := await context.read()) is grpc.aio.EOF:
                return
            await self._door.wait(call)
            if copies:
                await share.hold(copies * len(serialized))
            message = [self._door.let_in(call, read(serialized))]
            del serialized
            yield message.pop()


# Messages of these count as memory until their handler gives it back: so many times their size. A chunk is there as
# it came and as it is computed, then as it is computed and as gRPC sends it; several tensors as protobuf has them, too.
_COPIES = {"NormalizeStream": 2, "NormalizeManyStream": 3, "UpdateRunningStatsStream": 1}
# Which stay open between one array and the next.
_RESTING = frozenset({"NormalizeManyStream"})
# Whose answers are counted with them.
_ANSWERED = frozenset({"NormalizeStream", "NormalizeManyStream"})
# What the first messages may hold, an opening frame and a chunk, or one; of other streams it is not known.
_EXPECTED_BYTES = {"NormalizeStream": (2 << 20, 2 << 20), "NormalizeManyStream": (3 << 20,)}


def _requests(message: pb.NormalizeManyRequest | pb.NormalizeManyStreamRequest) -> list[Carried[pb.NormalizeRequest]]:
    return [Carried(request, request.data) for request in message.requests]


# Requests whose tensors are looked at where they were received.
_CARRIED = {
    "Normalize": carried.deserializer(pb.NormalizeRequest),
    "NormalizeMany": carried.deserializer_of_many(pb.NormalizeManyRequest, pb.NormalizeRequest, _requests, depth=1),
    "NormalizeManyStream": carried.deserializer_of_many(
        pb.NormalizeManyStreamRequest, pb.NormalizeRequest, _requests, depth=1
    ),
    "NormalizeStream": carried.deserializer(pb.NormalizeStreamRequest),
}


def _codecs(method: str, handler: Any) -> tuple[Callable[[bytes], Received], Callable[[Any], bytes]]:
    """How a method's requests are read and its responses written.

    A handler may give what it has serialized already: once for all who are told the same, or on a compute thread.
    """
    serialize = handler.response_serializer
    deserialize = _CARRIED.get(method, handler.request_deserializer)
    return receiving(deserialize), lambda response: response if isinstance(response, bytes) else serialize(response)


class _Answers:
    """A stream's context, whose writes are counted.

    No answer is kept once it is written, neither here nor by gRPC, whose own loop over a handler keeps the last one.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._call = _this_call()
        self._are_counted = self._call.method in _ANSWERED

    async def write(self, response: Any) -> None:
        """Write an answer; a large one, of which gRPC makes a copy, when there is memory."""
        share = self._call.share
        assert share is not None, "a stream has a share"
        size_bytes = len(response) if isinstance(response, bytes) else 0
        if self._are_counted or size_bytes <= SMALL_BYTES:
            size_bytes = 0
        else:
            await share.hold(size_bytes)
        share.writes()
        await self._context.write(response)
        share.has_written()
        if size_bytes:
            share.give(size_bytes)

    async def write_all(self, responses: AsyncIterator[Any]) -> None:
        """Write answers as they come."""
        while True:
            try:
                await self.write(await anext(responses))
            except StopAsyncIteration:
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _this_call() -> Call:
    call = calls.current()
    assert call is not None, "a call has entered before its handler runs"
    return call


async def _abort(context: Context, observed: Observed, method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    found = status.told(error, method)
    told = rpc_status.to_status(found)
    observed.failed(status.name_of(found), error)
    await context.abort(told.code, told.details, told.trailing_metadata)
