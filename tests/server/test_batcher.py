"""Where and with what a normalization is computed, and that this changes no result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch

from normcore.running import Estimate
from normserver import batcher, replies
from normserver.batcher import Batcher, Job
from normserver.compute import Compute
from normserver.engine import CPU, Batch, Mode, Plan
from normserver.errors import InvalidArgument, ResourceExhausted
from normserver.metrics import Metrics
from normserver.placement import everything_on
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb

LAYER = Plan(specs.LayerNorm(8), Mode.BATCH)
REPLY = replies.normalized(Mode.BATCH, 0)


class Device:
    """A batcher whose launches are seen: on which thread, and how many jobs each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: int) -> None:
        self.launches: list[tuple[str, list[Job]]] = []
        self.compute = Compute(Metrics(), **{"threads": 1, "max_queued": 64} | settings)
        self.batcher = Batcher(self.compute, everything_on(CPU))
        work = self.batcher._work

        def seen(jobs: Sequence[Job]) -> Any:
            place = "thread" if threading.current_thread().name.startswith("compute") else "event loop"
            self.launches.append((place, list(jobs)))
            return work(jobs)

        monkeypatch.setattr(self.batcher, "_work", seen)

    async def place(self, plan: Plan, x: torch.Tensor, **padding: Any) -> str:
        """Where a batch was normalized."""
        await self.batcher.run(Job(plan, Batch(x, **padding), REPLY))
        return self.launches[-1][0]

    @asynccontextmanager
    async def occupied(self) -> AsyncIterator[threading.Event]:
        """Do something else until the event is set; in the end, stop."""
        done = threading.Event()
        busy = asyncio.ensure_future(self.compute.run(done.wait))
        await asyncio.sleep(0.01)
        try:
            yield done
        finally:
            done.set()
            await busy
            self.compute.close()

    async def while_busy(self, jobs: Sequence[Job]) -> list[Any]:
        """What becomes of jobs that come one after another while the device does something else."""
        done = threading.Event()
        busy = asyncio.ensure_future(self.compute.run(done.wait))
        await asyncio.sleep(0.01)
        self.launches.clear()
        waiting = [asyncio.ensure_future(self.batcher.run(job)) for job in jobs]
        await asyncio.sleep(0.01)
        done.set()
        await busy
        return await asyncio.gather(*waiting, return_exceptions=True)

    @property
    def sizes(self) -> list[int]:
        """How many jobs each launch took."""
        return [len(jobs) for _, jobs in self.launches]


@pytest.fixture
async def device(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Device]:
    device = Device(monkeypatch)
    yield device
    device.compute.close()


def rows(count: int, features: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(count).normal(3, 2, (count, features))).to(dtype)


def job(x: torch.Tensor, plan: Plan = LAYER, caller: str = "one", **padding: Any) -> Job:
    return Job(plan, Batch(x, **padding), REPLY, caller)


async def test_the_first_of_a_kind_never_holds_the_event_loop(device: Device) -> None:
    x = torch.ones(2, 8)
    assert [await device.place(LAYER, x.to(kind)) for kind in (torch.float32, torch.int16)] == ["thread"] * 2
    assert "event loop" in {await device.place(LAYER, x) for _ in range(50)}
    assert await device.place(LAYER, torch.ones(4, 8)) == "thread"
    assert await device.place(LAYER, x, lengths=torch.tensor([1, 1])) == "thread"


async def test_what_takes_long_goes_to_a_thread_each_time(device: Device) -> None:
    large = torch.ones(1 << 15, 8)  # a megabyte
    assert {await device.place(LAYER, large) for _ in range(3)} == {"thread"}
    ghosts = Plan(specs.BatchNorm(1, virtual_batch_size=2), Mode.BATCH)
    many = torch.arange(1000.0).reshape(1000, 1)  # 500 passes
    assert {await device.place(ghosts, many) for _ in range(3)} == {"thread"}


async def test_what_gathers_while_the_device_is_busy_goes_in_one_launch(device: Device) -> None:
    jobs = [job(rows(count), caller=f"caller {count % 3}") for count in (1, 5, 2, 7, 3)]
    results = await device.while_busy(jobs)
    assert device.sizes == [5]
    for one, result in zip(jobs, results, strict=True):
        alone = await device.batcher.run(one)
        assert result.sent == alone.sent


async def test_an_idle_device_begins_at_once_and_alone(device: Device) -> None:
    await device.batcher.run(job(rows(3)))
    assert device.sizes == [1]


def estimate(features: int) -> Estimate:
    values = rows(64, features, torch.float64)
    return Estimate(values.mean(0), values.var(0), values.amin(0), values.amax(0), torch.tensor(64.0), ddof=1)


WEIGHT = np.linspace(0.5, 2, 6)
BIAS = np.linspace(-1, 1, 6)
KINDS = {
    "layer": (Plan(specs.LayerNorm(6, weight=WEIGHT, bias=BIAS), Mode.BATCH), (6,)),
    "layer over two axes": (Plan(specs.LayerNorm((5, 6)), Mode.BATCH), (5, 6)),
    "layer of sequences": (Plan(specs.LayerNorm(6), Mode.BATCH), (5, 6)),
    "rms": (Plan(specs.RMSNorm(6, weight=WEIGHT), Mode.BATCH), (6,)),
    "group": (Plan(specs.GroupNorm(2, 6, weight=WEIGHT, bias=BIAS), Mode.BATCH), (6, 7)),
    "instance": (Plan(specs.InstanceNorm(6, weight=WEIGHT, bias=BIAS), Mode.BATCH), (6, 3, 5)),
    "mean and variance": (Plan(specs.MeanVarianceNorm((2, 3)), Mode.BATCH), (6, 3, 5)),
    "lp": (Plan(specs.LpNorm(3, 1), Mode.BATCH), (6, 3)),
    "local response": (Plan(specs.LocalResponseNorm(3), Mode.BATCH), (6, 3)),
    "batch norm, eval": (Plan(specs.BatchNorm(6, weight=WEIGHT, bias=BIAS), Mode.EVAL, estimate=estimate(6)), (6, 9)),
    "standardize": (Plan(specs.Standardize(6, clip=1.5), Mode.EVAL, estimate=estimate(6)), (6,)),
    "undone": (Plan(specs.Standardize(6), Mode.EVAL, inverse=True, estimate=estimate(6)), (4, 6)),
    "min-max": (Plan(specs.MinMax(6), Mode.EVAL, estimate=estimate(6)), (6,)),
}
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
async def test_company_changes_no_bit(device: Device, kind: str, dtype: torch.dtype) -> None:
    plan, shape = KINDS[kind]
    size = int(np.prod(shape))
    jobs = [job((rows(count, size) * 5).to(dtype).reshape(count, *shape), plan) for count in (1, 2, 17, 40)]
    results = await device.while_busy(jobs)
    assert device.sizes == [4]
    for one, result in zip(jobs, results, strict=True):
        assert result.sent == (await device.batcher.run(one)).sent


async def test_sequences_of_other_lengths_go_together(device: Device) -> None:
    plan = Plan(specs.LayerNorm(8), Mode.BATCH)
    shapes = ((1, 3, 8), (2, 9, 8), (5, 8), (8,))
    jobs = [job(rows(int(np.prod(shape[:-1])), 8).reshape(shape), plan) for shape in shapes]
    results = await device.while_busy(jobs)
    assert device.sizes == [4]
    for one, result in zip(jobs, results, strict=True):
        assert result.sent == (await device.batcher.run(one)).sent


async def test_padded_sequences_go_together_by_their_lengths(device: Device) -> None:
    plan = Plan(specs.InstanceNorm(2), Mode.BATCH)
    jobs = [job(rows(count, 10).reshape(count, 2, 5), plan, lengths=torch.arange(count) % 5 + 1) for count in (1, 4, 3)]
    results = await device.while_busy(jobs)
    assert device.sizes == [3]
    for one, result in zip(jobs, results, strict=True):
        assert result.sent == (await device.batcher.run(one)).sent


ALONE = {
    "statistics over rows": job(rows(4), Plan(specs.BatchNorm(8), Mode.BATCH)),
    "a mask": job(rows(4), mask=torch.ones(4, 1, dtype=torch.bool)),
    "of another type": job(rows(4).half()),
    "of another shape": job(rows(4, 9)),
    "by another plan": job(rows(4), Plan(specs.LayerNorm(8), Mode.BATCH)),
    "empty": job(rows(4)[:0]),
    "large": job(torch.ones(1 << 12, 8)),
}


@pytest.mark.parametrize("case", ALONE)
async def test_others_go_alone(device: Device, case: str) -> None:
    await device.while_busy([job(rows(2)), ALONE[case], job(rows(3))])
    assert sorted(device.sizes)[-1] == 2
    assert len(device.sizes) >= 2


async def test_what_is_wrong_with_one_is_told_to_that_one(device: Device) -> None:
    plan = Plan(specs.LayerNorm(8), Mode.BATCH)
    jobs = [
        job(rows(2).reshape(2, 1, 8), plan, lengths=torch.tensor([1, 1])),
        job(rows(2).reshape(2, 1, 8), plan, lengths=torch.tensor([1, 7])),
        job(rows(3).reshape(3, 1, 8), plan, lengths=torch.tensor([1, 0, 1])),
    ]
    first, wrong, last = await device.while_busy(jobs)
    assert device.sizes == [3, 1, 1, 1]
    assert isinstance(wrong, InvalidArgument)
    assert "expected 0 to 1" in wrong.sentence
    assert first.sent == (await device.batcher.run(jobs[0])).sent
    assert last.sent == (await device.batcher.run(jobs[2])).sent


async def test_anothers_wrong_lengths_are_no_affair_of_mine(device: Device) -> None:
    plan = Plan(specs.InstanceNorm(2), Mode.BATCH)

    def padded(rows_: int, *lengths: int) -> Job:
        return job(rows(rows_, 10).reshape(rows_, 2, 5), plan, lengths=torch.tensor(lengths))

    jobs = [padded(3, 1, 2), padded(2, 3, 4), padded(2, 5, 5, 5)]  # seven rows, and seven lengths
    first, mine, last = await device.while_busy(jobs)
    assert isinstance(first, InvalidArgument)
    assert isinstance(last, InvalidArgument)
    assert mine.sent == (await device.batcher.run(jobs[1])).sent


async def test_callers_take_turns(device: Device) -> None:
    plans = [Plan(specs.LayerNorm(8), Mode.BATCH) for _ in range(8)]  # of one plan they would go together
    jobs = [job(rows(1), plan, "greedy") for plan in plans[:6]] + [job(rows(1), plan, "modest") for plan in plans[6:]]
    await device.while_busy(jobs)
    callers = [jobs[0].caller for _, jobs in device.launches]
    assert callers == ["greedy", "modest", "greedy", "modest", "greedy", "greedy", "greedy", "greedy"]


async def test_a_full_queue_refuses_at_once_and_what_leaves_it_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, max_queued=3)
    async with device.occupied() as done:
        waiting = [asyncio.ensure_future(device.batcher.run(job(rows(count)))) for count in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="3 normalizations are waiting"):
            await device.batcher.run(job(rows(3)))
        waiting[0].cancel()
        await asyncio.sleep(0)
        third = asyncio.ensure_future(device.batcher.run(job(rows(3))))
        await asyncio.sleep(0)
        done.set()
        await asyncio.gather(waiting[1], third)
        assert [len(one.batch.x) for _, jobs in device.launches for one in jobs] == [2, 3]


async def test_streams_wait_for_half_of_the_queue_and_leave_the_other_to_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, max_queued=8)
    begun: list[asyncio.Future[Any]] = []

    async def stream(number: int) -> None:
        await device.batcher.room(number)
        begun.extend(device.batcher.begin(job(rows(1))) for _ in range(number))

    async with device.occupied() as done:
        streams = [asyncio.ensure_future(stream(number)) for number in (2, 1, 3, 6, 1)]
        await asyncio.sleep(0.01)
        assert len(begun) == 3
        calls = [asyncio.ensure_future(device.batcher.run(job(rows(2)))) for _ in range(4)]
        streams[2].cancel()
        await asyncio.sleep(0.01)
        done.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*calls, *streams[:2], *streams[3:])
            await asyncio.gather(*begun)
        assert len(begun) == 10


async def test_a_stream_that_ends_as_it_gets_room_leaves_it_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, max_queued=4)
    async with device.occupied() as done:
        queued = device.batcher.begin(job(rows(1)))
        first, second = (asyncio.ensure_future(device.batcher.room(2)) for _ in range(2))
        await asyncio.sleep(0.01)
        queued.cancel()
        first.cancel()
        done.set()
        async with asyncio.timeout(5):
            await second


async def test_room_that_a_stream_gets_and_does_not_need_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, max_queued=4)
    async with device.occupied() as done:
        queued = [device.batcher.begin(job(rows(1))) for _ in range(2)]
        streams = [asyncio.ensure_future(device.batcher.room(2)) for _ in range(5)]
        await asyncio.sleep(0.01)
        done.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*queued, *streams)


async def test_many_of_one_request_go_together_or_fail_alone(device: Device) -> None:
    jobs = [job(rows(1)), job(rows(2, 9)), job(rows(3)), job(rows(4, 8, torch.float64))]
    first, wrong, third, other = await device.batcher.run_all(jobs)
    assert isinstance(wrong, InvalidArgument)
    for one, result in ((jobs[0], first), (jobs[2], third), (jobs[3], other)):
        assert not isinstance(result, Exception)
        assert result.sent == (await device.batcher.run(one)).sent
    for _ in range(50):
        device.launches.clear()
        await device.batcher.run_all(jobs)
    assert ("event loop", 2) in [(place, len(some)) for place, some in device.launches]


def test_replies_are_what_protobuf_writes() -> None:
    x = rows(2)
    sent = batcher.codec.encode_tensor(replies.normalized(Mode.EVAL, 7), x)
    message = pb.NormalizeResponse.FromString(sent)
    assert (message.mode, message.version, list(message.output.shape)) == (pb.MODE_EVAL, 7, [2, 8])
    assert message.data == x.numpy().tobytes()
