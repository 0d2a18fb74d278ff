"""1,000 producers stream at once on one server, and lose nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

import normstats
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import contribution
from tests.faults.conftest import Promise, Site
from tests.faults.load import FEATURES, SPEC
from tests.faults.sizes import sized

PRODUCERS, CHANNELS = 1000, 10


@sized("updates", 5, 50)
@pytest.mark.timeout(300)
def test_a_thousand_producers(site: Site, promise: Promise, name: str, updates: int) -> None:
    server = site.server().start()
    x = np.arange(2.0 * FEATURES).reshape(2, FEATURES)
    with normstats.connect(server.target) as client:
        normalizer = client.create(name, SPEC)
        took = asyncio.run(contribute(server.target, contribution(name, x), updates))
        found = normalizer.stats()
    assert found.num_batches == PRODUCERS * updates
    assert np.unique(found.count).tolist() == [2.0 * PRODUCERS * updates]
    assert found.mean.tolist() == x.mean(axis=0).tolist()
    promise(
        f"1,000 producers x {updates} on streams at once, {site.name}",
        "nothing lost",
        f"{int(found.num_batches)} of {PRODUCERS * updates} batches; {PRODUCERS * updates / took:.0f} durable a second",
    )


async def contribute(target: str, message: pb.Contribution, updates: int) -> float:
    """All open their streams first, then all send; each waits for an acknowledgement before its next. Seconds."""
    # Channels of equal options would share one connection.
    channels = [grpc.aio.insecure_channel(target, [("normstats.test", k)]) for k in range(CHANNELS)]
    opened = asyncio.Barrier(PRODUCERS + 1)

    async def produce(index: int) -> None:
        stub = NormalizationServiceStub(channels[index % CHANNELS])
        acknowledged: asyncio.Queue[int] = asyncio.Queue()

        async def frames() -> AsyncIterator[pb.UpdateRunningStatsStreamRequest]:
            yield pb.UpdateRunningStatsStreamRequest(open={"producer_id": index.to_bytes(16, "big")})
            await acknowledged.get()
            await opened.wait()
            for sequence in range(1, updates + 1):
                frame = pb.UpdateRunningStatsStreamRequest.Update(sequence=sequence, contributions=(message,))
                yield pb.UpdateRunningStatsStreamRequest(update=frame)
                while await acknowledged.get() < sequence:
                    pass

        async for reply in stub.UpdateRunningStatsStream(frames()):
            acknowledged.put_nowait(reply.acknowledged_sequence)

    async with asyncio.TaskGroup() as group:
        for index in range(PRODUCERS):
            group.create_task(produce(index))
        await opened.wait()
        started = time.perf_counter()
    took = time.perf_counter() - started
    for channel in channels:
        await channel.close()
    return took
