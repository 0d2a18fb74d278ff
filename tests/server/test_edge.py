"""The edge: what a bug tells the caller (an id) and what the log (everything)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from normserver.door import Door, Room
from normserver.errors import ResourceExhausted
from normserver.guard import ConnectionGuard
from normserver.interceptors import Edge
from normserver.metrics import Metrics
from normserver.observing import Observer
from normserver.stream_memory import StreamMemory
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import normalization_service_pb2_grpc as pb_grpc
from tests.contract import Refused, told_by

CANARY = "hunter2"


class Faulty(pb_grpc.NormalizationServiceServicer):
    """A service with a bug in each kind of handler, and an error of its own in one."""

    async def GetNormalizer(self, request: Any, context: Any) -> Any:
        raise RuntimeError(CANARY)

    async def WatchRunningStats(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.WatchRunningStatsResponse()
        raise RuntimeError(CANARY)

    async def DeleteNormalizer(self, request: Any, context: Any) -> Any:
        raise ResourceExhausted("5 are waiting already; try again later")


async def called(metrics: Metrics, method: str, request: Any) -> grpc.aio.AioRpcError:
    server = grpc.aio.server(
        interceptors=(
            Edge(
                Observer(metrics, 100),
                Door(Room(9, 9, 1 << 20, 9), metrics, ConnectionGuard(9)),
                StreamMemory(1 << 20, metrics),
            ),
        )
    )
    pb_grpc.add_NormalizationServiceServicer_to_server(Faulty(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = getattr(pb_grpc.NormalizationServiceStub(channel), method)(request)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await everything(call)
            return caught.value
    finally:
        await server.stop(0)


async def everything(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


@pytest.mark.parametrize(
    ("method", "request_"),
    [("GetNormalizer", pb.GetNormalizerRequest()), ("WatchRunningStats", pb.WatchRunningStatsRequest())],
)
async def test_a_bug_tells_the_caller_an_id_and_the_log_everything(
    method: str, request_: Any, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.ERROR):
        error = await called(metrics, method, request_)
    told = told_by(error)
    assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    (record,) = [record for record in caplog.records if record.getMessage() == "bug"]
    assert record.incident in told.sentence  # type: ignore[attr-defined]
    assert CANARY in str(record.exc_info)
    assert CANARY not in repr(error)
    counted = f'normstats_calls_total{{code="INTERNAL",method="{method}"}} 1.0'.encode()
    for _ in range(500):  # a stream's caller may know before the call has been counted
        if counted in generate_latest(metrics.registry):
            break
        await asyncio.sleep(0.01)
    assert counted in generate_latest(metrics.registry)
    assert CANARY.encode() not in generate_latest(metrics.registry)


async def test_an_error_of_the_domain_says_all_it_knows() -> None:
    told = told_by(await called(Metrics(), "DeleteNormalizer", pb.DeleteNormalizerRequest()))
    expected = grpc.StatusCode.RESOURCE_EXHAUSTED, "", "QUEUE_FULL", "5 are waiting already; try again later"
    assert told == Refused(*expected)
