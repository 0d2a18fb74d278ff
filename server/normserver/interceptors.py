"""Around every call: errors become statuses, calls are counted and timed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, contextmanager
from inspect import iscoroutinefunction
from typing import Any, TypeAlias

import grpc
from grpc.aio import ServerInterceptor, ServicerContext
from grpc_status import rpc_status

from normserver import status
from normserver.metrics import Metrics
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import carried

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Edge(ServerInterceptor):
    """The edge of the service."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the method's handler. A method that does not exist has none, and gRPC says so itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method).rpartition("/")[2]
        if iscoroutinefunction(handler.stream_stream):
            return self._writing(method, handler)
        if handler.response_streaming:
            return self._streaming(method, handler)
        return self._unary(method, handler)

    def _unary(self, method: str, handler: Any) -> Handler:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def call(request: Any, context: ServicerContext[Any, Any]) -> Any:
            with self._observed(method) as observed:
                try:
                    return await inner(request, context)
                except Exception as error:
                    await _abort(context, observed, method, error)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(call, *_codecs(method, handler))

    def _streaming(self, method: str, handler: Any) -> Handler:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def call(request: Any, context: ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with self._metrics.streams.labels(method).track_inprogress(), self._observed(method) as observed:
                try:
                    async with aclosing(inner(request, context)) as responses:  # what a stream holds ends with it
                        async for response in responses:
                            yield response
                except Exception as error:
                    await _abort(context, observed, method, error)

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(call, *_codecs(method, handler))

    def _writing(self, method: str, handler: Any) -> Handler:
        """A stream whose handler writes to its context, as its answers come in no order."""

        async def call(requests: Any, context: ServicerContext[Any, Any]) -> None:
            with self._metrics.streams.labels(method).track_inprogress(), self._observed(method) as observed:
                try:
                    await handler.stream_stream(requests, context)
                except Exception as error:
                    await _abort(context, observed, method, error)

        return grpc.stream_stream_rpc_method_handler(call, *_codecs(method, handler))

    def _observed(self, method: str) -> AbstractContextManager[_Observed]:
        return _observe(self._metrics, method)


# Requests whose tensors are looked at where they were received.
_CARRIED = {
    "Normalize": carried.deserializer(pb.NormalizeRequest),
    "NormalizeMany": carried.deserializer_of_many(pb.NormalizeManyRequest),
    "NormalizeManyStream": carried.deserializer_of_many(pb.NormalizeManyStreamRequest),
    "NormalizeStream": carried.deserializer(pb.NormalizeStreamRequest),
}


def _codecs(method: str, handler: Any) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """How a method's requests are read and its responses written.

    A handler may give what it has serialized already: once for all who are told the same, or on a compute thread.
    """
    serialize = handler.response_serializer
    deserialize = _CARRIED.get(method, handler.request_deserializer)
    return deserialize, lambda response: response if isinstance(response, bytes) else serialize(response)


class _Observed:
    """What a call ended with, so far as is known."""

    code = "CANCELLED"  # a handler that neither returns nor raises was cancelled


@contextmanager
def _observe(metrics: Metrics, method: str) -> Any:
    observed, started = _Observed(), time.perf_counter()
    try:
        yield observed
        observed.code = "OK"
    finally:
        metrics.call_seconds.labels(method).observe(time.perf_counter() - started)
        metrics.calls.labels(method, observed.code).inc()


async def _abort(context: ServicerContext[Any, Any], observed: _Observed, method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    told = rpc_status.to_status(status.told(error, method))
    observed.code = told.code.name
    await context.abort(told.code, told.details, told.trailing_metadata)
