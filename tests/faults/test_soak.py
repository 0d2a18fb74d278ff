"""Soak: calls, errors, streams and connections without end leave no memory, thread, descriptor or metric behind."""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest

from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import contribution, described
from tests.faults.conftest import Promise, Site
from tests.faults.procfs import Process
from tests.faults.sizes import sized
from tests.server_process import ServerProcess

CALLERS, FEATURES = 16, 8
GROWTH, SLACK_BYTES = 0.02, 8 << 20
SETTLE_SECONDS = 5.0

X = np.arange(4.0 * FEATURES).reshape(4, FEATURES)


class Size(NamedTuple):
    """How many of each, in all, and in how many parts, after each of which it is looked at what is left."""

    calls: int
    streams: int
    parts: int


class Producer(NamedTuple):
    """One who contributes from the first part to the last."""

    id: bytes
    sequences: Iterator[int]


class Left(NamedTuple):
    """What a server has when nobody asks anything of it."""

    memory_bytes: int
    threads: int
    descriptors: int
    series: int


@sized("size", Size(2_000, 100, 10), Size(200_000, 2_000, 50))
@pytest.mark.timeout(600)
def test_soak(sqlite: Site, promise: Promise, name: str, size: Size) -> None:
    server = sqlite.server().start()
    with grpc.insecure_channel(server.target) as channel:
        request = pb.CreateNormalizerRequest(name=name, exist_ok=True)
        request.spec.standardize.num_features = FEATURES
        NormalizationServiceStub(channel).CreateNormalizer(request)
    started = time.monotonic()
    samples = asyncio.run(soak(server, name, size))
    took = time.monotonic() - started
    half = len(samples) // 2
    middle, end = samples[half], samples[-1]
    before, after = (most(part) for part in (samples[: half + 1], samples[half + 1 :]))
    grown = (end.memory_bytes - middle.memory_bytes) / 2**20
    seen = (
        f"RSS {middle.memory_bytes / 2**20:.0f} {grown:+.1f} MiB, threads {before.threads} -> {after.threads}, "
        f"descriptors {before.descriptors} -> {after.descriptors}, series {middle.series} -> {end.series}; "
        f"{size.calls / took:.0f} calls/s"
    )
    assert end.memory_bytes - middle.memory_bytes < GROWTH * middle.memory_bytes + SLACK_BYTES, seen
    assert after.threads <= before.threads, seen
    assert after.descriptors <= before.descriptors, seen
    assert end.series == middle.series, seen
    promise(
        f"Soak: {size.calls} calls, {size.streams} streams, {size.calls // 8} unknown names",
        "the second half adds < 2 % + 8 MiB, no thread, no descriptor, no series",
        seen,
    )


def most(samples: list[Left]) -> Left:
    """The most of each."""
    return Left(*(max(column) for column in zip(*samples, strict=True)))


async def soak(server: ServerProcess, name: str, size: Size) -> list[Left]:
    """Part after part, each by a connection of its own; what is left after each. The first is one too many: what is
    said for the first time makes its metrics.
    """
    samples = []
    producers = [Producer(secrets.token_bytes(16), count(1)) for _ in range(CALLERS)]
    for part in range(size.parts + 1):
        calls = iter(range(size.calls * part // size.parts, size.calls * (part + 1) // size.parts))
        streams = iter(range(size.streams * part // size.parts, size.streams * (part + 1) // size.parts))
        # Channels of equal options would share one connection.
        async with grpc.aio.insecure_channel(server.target, [("normstats.test", secrets.token_hex())]) as channel:
            stub = NormalizationServiceStub(channel)
            await asyncio.gather(*(caller(stub, name, producer, calls, streams) for producer in producers))
        gc.collect()  # so that what this process still held of the connection is closed
        samples.append(await settled(server))
    return samples


async def caller(
    stub: NormalizationServiceStub, name: str, producer: Producer, calls: Iterator[int], streams: Iterator[int]
) -> None:
    """One of several who share calls and streams."""
    for number in calls:
        await call(stub, name, producer, number)
    for number in streams:
        await stream(stub, name, number)


async def call(stub: NormalizationServiceStub, name: str, producer: Producer, number: int) -> None:
    """One unary call of some kind: half of them normalize, an eighth each asks for what is not there or is wrong."""
    match number % 8:
        case 0 | 2 | 4 | 6:
            await stub.Normalize(normalizing(normalizer=name, mode=pb.MODE_BATCH))
        case 1:
            contributions = [contribution(name, X)]
            await stub.UpdateRunningStats(
                pb.UpdateRunningStatsRequest(
                    producer_id=producer.id, sequence=next(producer.sequences), contributions=contributions
                )
            )
        case 3:
            await stub.GetRunningStats(pb.GetRunningStatsRequest(normalizer=name))
        case 5:
            unknown = f"{name}/{secrets.token_hex(8)}"
            await refused(stub.GetRunningStats(pb.GetRunningStatsRequest(normalizer=unknown)), "NOT_FOUND")
        case 7:
            await refused(stub.Normalize(normalizing(normalizer=name, data=b"123")), "INVALID_ARGUMENT")


def normalizing(**fields: Any) -> pb.NormalizeRequest:
    """A small request."""
    return pb.NormalizeRequest(**{"input": described(X), "data": X.tobytes()} | fields)


async def refused(call: Awaitable[Any], code: str) -> None:
    """Expect an error."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code().name == code


Frames = Callable[[str], list[Any]]


def chunks(name: str) -> list[Any]:
    opening = pb.NormalizeStreamRequest.Open(normalizer=name, mode=pb.MODE_EVAL)
    chunk = pb.NormalizeStreamRequest.Chunk(input=described(X))
    return [pb.NormalizeStreamRequest(open=opening), pb.NormalizeStreamRequest(chunk=chunk, data=X.tobytes())]


def messages(name: str) -> list[Any]:
    return [pb.NormalizeManyStreamRequest(requests=[normalizing(normalizer=name, mode=pb.MODE_BATCH)], id=1)]


def contributions(name: str) -> list[Any]:
    update = pb.UpdateRunningStatsStreamRequest.Update(sequence=1, contributions=[contribution(name, X)])
    return [
        pb.UpdateRunningStatsStreamRequest(open={"producer_id": secrets.token_bytes(16)}),
        pb.UpdateRunningStatsStreamRequest(update=update),
    ]


def rounds(name: str) -> list[Any]:
    join = pb.SynchronizeStatsRequest.Join(
        group=f"{name}/{secrets.token_hex(8)}", member_id=secrets.token_bytes(16), size=1
    )
    return [
        pb.SynchronizeStatsRequest(join=join),
        pb.SynchronizeStatsRequest(part={"round": 1, "vector": X[0].tobytes()}),
    ]


STREAMS: dict[str, Frames] = {
    "NormalizeStream": chunks,
    "NormalizeManyStream": messages,
    "UpdateRunningStatsStream": contributions,
    "SynchronizeStats": rounds,
}


async def stream(stub: NormalizationServiceStub, name: str, number: int) -> None:
    """One stream of some kind: half of them end well, half are cancelled after their first answer."""
    number, cancelled = divmod(number, 2)
    if number % (len(STREAMS) + 1) == len(STREAMS):
        watching = stub.WatchRunningStats(pb.WatchRunningStatsRequest(normalizer=name))
        await watching.read()
        watching.cancel()
        return
    method, frames = list(STREAMS.items())[number % (len(STREAMS) + 1)]

    async def sent() -> AsyncIterator[Any]:
        for frame in frames(name):
            yield frame
        if cancelled:
            await asyncio.sleep(60)

    opened = getattr(stub, method)(sent())
    async for _ in opened:
        if cancelled:
            opened.cancel()
            break
    assert cancelled or await opened.code() is grpc.StatusCode.OK


async def settled(server: ServerProcess) -> Left:
    """What the server has once it has seen that its callers are gone: when that is the same twice."""
    process = Process(server)
    known = None
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        now = process.threads, process.descriptors
        if now == known:
            break
        known = now
        await asyncio.sleep(0.1)
    pages = await asyncio.to_thread(httpx.get, f"{server.http}/metrics")
    series = sum(not line.startswith("#") for line in pages.text.splitlines())
    return Left(process.memory_bytes, *(known or (0, 0)), series)
