"""Load from a process of its own: `python -m benchmarks.load '{"kind": "streams", ...}'` prints one JSON object.

Frames are serialized before the clock starts, so that on shared cores the load takes as little as it can. It is
closed: a producer sends its next contribution when one of its last `window` is acknowledged. Latencies are from the
write of a contribution to the read of its acknowledgement.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

import normstats
from normstats.moments import batches_of
from normstats.requests import of_moments
from normstats.v1 import normalization_service_pb2 as pb

_SERVICE = "/normstats.v1.NormalizationService"
ROWS = 8


def contribution(name: str, features: int) -> pb.Contribution:
    """The moments of one batch of rows."""
    x = np.random.default_rng(0).normal(size=(ROWS, features)).astype(np.float32)
    return of_moments(name, batches_of(x, normstats.Standardize(features), lengths=None, mask=None))


def connections(targets: list[str], count: int) -> list[grpc.aio.Channel]:
    """So many connections, shared out over the servers. Channels of equal options would share one."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return [grpc.aio.insecure_channel(targets[index % len(targets)], options) for index in range(count)]


class Clock:
    """What is counted: between the end of the warm-up and the end."""

    def __init__(self, warmup: float, seconds: float) -> None:
        self.begin = time.perf_counter() + warmup
        self.end = self.begin + seconds
        self.seconds = seconds
        self.latencies: list[float] = []
        self.total = 0

    def over(self) -> bool:
        return time.perf_counter() >= self.end

    def took(self, since: float, count: int = 1) -> None:
        now = time.perf_counter()
        self.total += count
        if self.begin <= now < self.end:
            self.latencies.extend([now - since] * count)

    def result(self) -> dict[str, Any]:
        return figures(self.latencies, self.seconds) | {"total": self.total}


def figures(latencies: list[float], seconds: float) -> dict[str, Any]:
    """Rate, and the latencies that one asks for, in milliseconds."""
    if not latencies:
        return {"per_second": 0.0, "p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return {"per_second": len(latencies) / seconds, "p50_ms": float(p50), "p99_ms": float(p99)}


async def streams(load: dict[str, Any], clock: Clock) -> None:
    """Producers on UpdateRunningStatsStream, each with `window` contributions on their way."""
    window = load["window"]
    tail = pb.UpdateRunningStatsStreamRequest.Update(contributions=[contribution(load["name"], load["features"])])
    body = tail.SerializeToString()
    channels = connections(load["targets"], min(load["producers"], load["connections"]))

    async def produce(index: int) -> None:
        call = channels[index % len(channels)].stream_stream(
            f"{_SERVICE}/UpdateRunningStatsStream",
            request_serializer=None,
            response_deserializer=pb.UpdateRunningStatsStreamResponse.FromString,
        )()
        opening = pb.UpdateRunningStatsStreamRequest(open={"producer_id": secrets.token_bytes(16)})
        await call.write(opening.SerializeToString())
        await call.read()
        sent: deque[float] = deque()
        sequence = acknowledged = 0
        while not clock.over() or sent:
            while len(sent) < window and not clock.over():
                sequence += 1
                sent.append(time.perf_counter())
                await call.write(_frame(sequence, body))
            if not sent:
                break
            upto = (await call.read()).acknowledged_sequence
            for _ in range(upto - acknowledged):
                clock.took(sent.popleft())
            acknowledged = upto
        await call.done_writing()
        call.cancel()

    await _together(produce, load["producers"])
    await _close(channels)


async def unary(load: dict[str, Any], clock: Clock) -> None:
    """Producers that call UpdateRunningStats, each time for one of `names` at random."""
    stem = contribution("", load["features"]).moments
    names = load["names"]
    channels = connections(load["targets"], min(load["producers"], load["connections"]))

    async def produce(index: int) -> None:
        call = channels[index % len(channels)].unary_unary(
            f"{_SERVICE}/UpdateRunningStats",
            request_serializer=pb.UpdateRunningStatsRequest.SerializeToString,
            response_deserializer=pb.UpdateRunningStatsResponse.FromString,
        )
        producer, sequence, chosen = secrets.token_bytes(16), 0, random.Random(index)
        while not clock.over():
            sequence += 1
            one = pb.Contribution(normalizer=f"{load['prefix']}{chosen.randrange(names)}", moments=stem)
            request = pb.UpdateRunningStatsRequest(producer_id=producer, sequence=sequence, contributions=[one])
            started = time.perf_counter()
            await call(request)
            clock.took(started)

    await _together(produce, load["producers"])
    await _close(channels)


async def client(load: dict[str, Any], clock: Clock) -> None:
    """Producers with the client's own stream: raw batches in, moments taken here, what waits gathered."""
    x = np.random.default_rng(0).normal(size=(ROWS, load["features"])).astype(np.float32)

    async def produce(index: int) -> None:
        target = load["targets"][index % len(load["targets"])]
        async with normstats.aio.connect(target, timeout=120) as connection:
            normalizer = await connection.get(load["name"])
            sent: deque[float] = deque()
            acknowledged = 0
            async with normalizer.stream(window=load["window"]) as stream:
                while not clock.over():
                    sent.append(time.perf_counter())
                    await stream.update(x)
                    await asyncio.sleep(0)
                    while acknowledged < stream.acknowledged:
                        clock.took(sent.popleft())
                        acknowledged += 1
            clock.total += len(sent)

    await _together(produce, load["producers"])


async def watchers(load: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """So many watchers, and one producer; latencies are from the write of a contribution to a watcher's news of it."""
    channels = connections(load["targets"], min(load["watchers"], 16) or 1)
    sent: dict[int, float] = {}
    told = 0
    ready = asyncio.Semaphore(0)

    async def watch(index: int) -> None:
        nonlocal told
        call = channels[index % len(channels)].unary_stream(
            f"{_SERVICE}/WatchRunningStats",
            request_serializer=pb.WatchRunningStatsRequest.SerializeToString,
            response_deserializer=pb.WatchRunningStatsResponse.FromString,
        )(pb.WatchRunningStatsRequest(normalizer=load["name"]))
        first = True
        async for reply in call:
            if first:
                ready.release()
                first = False
                continue
            told += 1
            if (since := sent.get(reply.stats.version)) is not None:
                clock.took(since)

    tasks = [asyncio.create_task(watch(index)) for index in range(load["watchers"])]
    for _ in tasks:
        await ready.acquire()
    (own,) = connections(load["targets"], 1)
    call = own.unary_unary(
        f"{_SERVICE}/UpdateRunningStats",
        request_serializer=pb.UpdateRunningStatsRequest.SerializeToString,
        response_deserializer=pb.UpdateRunningStatsResponse.FromString,
    )
    producer, commits = secrets.token_bytes(16), 0
    one = contribution(load["name"], load["features"])
    clock.begin = time.perf_counter()
    clock.end = clock.begin + clock.seconds
    version = load["version"]
    while not clock.over():
        commits += 1
        sent[version + 1] = time.perf_counter()
        request = pb.UpdateRunningStatsRequest(producer_id=producer, sequence=commits, contributions=[one])
        version = (await call(request)).contributed[0].version
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _close([*channels, own])
    return clock.result() | {"commits_per_second": commits / clock.seconds, "told": told}


async def _together(produce: Callable[[int], Awaitable[None]], count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for index in range(count):
            group.create_task(produce(index))


async def _close(channels: list[grpc.aio.Channel]) -> None:
    for channel in channels:
        await channel.close()


def _frame(sequence: int, body: bytes) -> bytes:
    """An UpdateRunningStatsStreamRequest with this update, whose sequence goes before the rest."""
    head = b"\x08" + _varint(sequence)
    return b"".join((b"\x12", _varint(len(head) + len(body)), head, body))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


async def run(load: dict[str, Any]) -> dict[str, Any]:
    """One load, as described."""
    clock = Clock(load.get("warmup", 1.0), load["seconds"])
    kinds: dict[str, Any] = {"streams": streams, "unary": unary, "client": client, "watchers": watchers}
    result = await kinds[load["kind"]](load, clock)
    return result or clock.result()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
