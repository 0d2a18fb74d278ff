"""Slow readers: who never reads what he asked for costs the server little memory, and others nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

import normstats
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import described
from tests.faults.conftest import Promise
from tests.faults.procfs import Process
from tests.faults.sizes import sized
from tests.server_process import ServerProcess

MIB = 1 << 20
OFFERED, GROWTH = 20, 128  # MiB
FEATURES = 16_384
ANSWER_SECONDS = 15.0
WELL_BEHAVED = np.random.default_rng(0).standard_normal((512, FEATURES // 4), dtype=np.float32)

_X = np.ones((64, FEATURES // 4), np.float32)
_SPEC = spec_wire.to_proto(specs.LayerNorm(FEATURES // 4))
_OPENING = pb.NormalizeStreamRequest(open=pb.NormalizeStreamRequest.Open(spec=_SPEC))
_CHUNK = pb.NormalizeStreamRequest(chunk=pb.NormalizeStreamRequest.Chunk(input=described(_X)), data=_X.tobytes())
_ONE = pb.NormalizeRequest(spec=_SPEC, input=described(_X), data=_X.tobytes())
_SMALL = pb.NormalizeRequest(spec=_SPEC, input=described(_X[:1]), data=_X[:1].tobytes())

Write = Callable[[Any], Awaitable[None]]


async def chunks(write: Write) -> None:
    """Chunks of a tensor, a megabyte each."""
    await write(_OPENING)
    for _ in range(OFFERED):
        await write(_CHUNK)


async def messages(write: Write) -> None:
    """Messages of a tensor each, a megabyte."""
    for number in range(OFFERED):
        await write(pb.NormalizeManyStreamRequest(requests=[_ONE], id=number))


async def small_messages(write: Write) -> None:
    """The same in messages that are answered at once."""
    message = pb.NormalizeManyStreamRequest(requests=[_SMALL] * 16)
    for _ in range(OFFERED * 4):
        await write(message)


OFFERS = {
    "NormalizeStream": chunks,
    "NormalizeManyStream": messages,
    "NormalizeManyStream, small": small_messages,
    "WatchRunningStats": None,
}


class Warm(NamedTuple):
    """A server that has done before what is asked of it here, and what it needed for that."""

    server: ServerProcess
    memory_bytes: int


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Warm]:
    """A server of the test's own: memory that another test has left behind would be counted, or hide this one's."""
    server = ServerProcess(tmp_path).start()
    with normstats.connect(server.target) as client:
        well_behaved(client)
        change(client.create("warm", normstats.Standardize(FEATURES)))
    yield Warm(server, Process(server).memory_bytes)
    server.stop()


def well_behaved(client: normstats.Client) -> float:
    """Streams that are read: the slowest answer."""
    took = []
    for _ in range(5):
        started = time.monotonic()
        client.normalize(WELL_BEHAVED, normstats.LayerNorm(FEATURES // 4), timeout=60)
        took.append(time.monotonic() - started)
    return max(took)


def change(wide: normstats.Normalizer) -> None:
    """So often that the versions are as many bytes as are offered."""
    for _ in range(OFFERED * MIB // (4 * 8 * FEATURES)):
        wide.update(np.ones((2, FEATURES)))


@sized("streams", 25, 100)
@pytest.mark.parametrize("what", OFFERS)
@pytest.mark.timeout(300)
def test_slow_readers(warm: Warm, promise: Promise, name: str, what: str, streams: int) -> None:
    server, before = warm
    process = Process(server)
    with normstats.connect(server.target) as client:
        wide = client.create(name, normstats.Standardize(FEATURES))
        wide.update(np.ones((2, FEATURES)))
        process.forget_peak()
        slowest, written = asyncio.run(
            unread(server.target, name, what, streams, lambda: well_behaved(client), lambda: change(wide))
        )
        grown = (process.peak_bytes - before) / MIB
    seen = f"RSS + {grown:.0f} MiB, {written:.1f} messages of each taken; beside them an answer within {slowest:.1f} s"
    assert grown < GROWTH, seen
    assert slowest < ANSWER_SECONDS, seen
    promise(
        f"Slow readers: {streams} x {what}, {OFFERED} MiB each",
        f"RSS + {GROWTH} MiB at most, others are answered < {ANSWER_SECONDS:.0f} s",
        seen,
    )


async def unread(
    target: str, name: str, what: str, streams: int, well_behaved: Callable[[], float], change: Callable[[], None]
) -> tuple[float, float]:
    """Open streams that nobody reads, each by a connection of its own, and offer until nothing more is taken.

    Returns the slowest answer beside them, and how many messages of each were taken.
    """
    taken = 0

    async def offer(call: Any, frames: Callable[[Write], Awaitable[None]]) -> None:
        async def write(message: Any) -> None:
            nonlocal taken
            await call.write(message)
            taken += 1

        await frames(write)

    channels = [grpc.aio.insecure_channel(target, [("normstats.test", index)]) for index in range(streams)]
    offers = []
    calls: list[Any] = []
    for channel in channels:
        stub = NormalizationServiceStub(channel)
        frames = OFFERS[what]
        if frames is None:
            calls.append(stub.WatchRunningStats(pb.WatchRunningStatsRequest(normalizer=name)))
        else:
            calls.append(getattr(stub, what.partition(",")[0])())
            offers.append(asyncio.create_task(offer(calls[-1], frames)))
    if not offers:
        await asyncio.sleep(1.0)
        await asyncio.to_thread(change)
    known = -1
    while known != taken:
        known = taken
        await asyncio.sleep(0.5)
    slowest = await asyncio.to_thread(well_behaved)
    for task in offers:
        task.cancel()
    await asyncio.gather(*offers, return_exceptions=True)
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()
    return slowest, taken / streams
