"""Deadlines: work for a caller that is gone stops, no half update is ever visible, and no call lasts for ever."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import contribution, create, told_by
from tests.faults import heavy
from tests.faults.conftest import Promise, Site
from tests.faults.load import wait_until
from tests.faults.procfs import Process
from tests.faults.proxy import Proxy
from tests.faults.sizes import sized
from tests.server_process import ServerProcess

WITHIN_SECONDS, WATCHED_SECONDS, DEFAULT_SECONDS = 0.1, 0.3, 1.0
# So many that are told at once may take as long to hear of it.
TOLD_SECONDS = 0.5
# Ticks are 10 ms long, and the server looks after itself now and then.
IDLE_SECONDS = 0.05

Begin = Callable[[NormalizationServiceStub], Any]

CALLS: dict[str, Begin] = {
    "Normalize": lambda stub: stub.Normalize.future(heavy.REQUEST),
    "NormalizeMany": lambda stub: stub.NormalizeMany.future(pb.NormalizeManyRequest(requests=[heavy.REQUEST] * 2)),
    "NormalizeManyStream": lambda stub: stub.NormalizeManyStream(iter([heavy.MANY] * 2)),
    "NormalizeStream": lambda stub: stub.NormalizeStream(iter([heavy.OPENING, *[heavy.CHUNK] * 2])),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that does one thing at a time."""
    flags = ("--threads", "1", "--default-deadline-seconds", str(DEFAULT_SECONDS))
    process = ServerProcess(tmp_path_factory.mktemp("server"), *flags).start()
    yield process
    process.stop()


@sized("callers", 40, 100)
@pytest.mark.parametrize("gone", ["cancels", "loses its connection"])
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.timeout(120)
def test_work_for_a_caller_that_is_gone_stops(
    server: ServerProcess, promise: Promise, method: str, gone: str, callers: int
) -> None:
    process = Process(server)
    with Proxy(server.target) as proxy, grpc.insecure_channel(proxy.target) as channel:
        stub = NormalizationServiceStub(channel)
        one_seconds = alone(stub)
        calls = [CALLS[method](stub) for _ in range(callers)]
        wait_until(lambda: queued(server) >= callers // 4, 10.0)
        if gone == "cancels":
            for call in calls:
                call.cancel()
        else:
            proxy.cut()
        time.sleep(WITHIN_SECONDS + one_seconds)
        before = process.cpu_seconds()
        time.sleep(WATCHED_SECONDS)
        used = process.cpu_seconds() - before
        left = queued(server)
    assert used <= IDLE_SECONDS, f"{used:.2f} s of work in {WATCHED_SECONDS} s, {left:.0f} waiting"
    assert left == 0
    promise(
        f"Deadlines: {callers} x {method}, each {one_seconds * 1e3:.0f} ms; its caller {gone}",
        "nothing is done 100 ms and one of them later",
        f"{used * 1e3:.0f} ms of work in the {WATCHED_SECONDS * 1e3:.0f} ms after that, {left:.0f} waiting",
    )


def alone(stub: NormalizationServiceStub) -> float:
    """How long one takes when nothing else is to be done."""
    stub.Normalize(heavy.REQUEST, wait_for_ready=True)
    started = time.monotonic()
    stub.Normalize(heavy.REQUEST)
    return time.monotonic() - started


def queued(server: ServerProcess) -> float:
    """How many normalizations wait or are under way, as the metrics tell."""
    lines = httpx.get(f"{server.http}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("normstats_compute_queue_size "))


@sized("updates", 60, 200)
@pytest.mark.timeout(120)
def test_no_half_update_is_visible(site: Site, promise: Promise, name: str, updates: int) -> None:
    """Contributions to three normalizers are cancelled at any moment, while somebody reads the three in turn: what is
    counted never goes back, from one to the next, as it would if one were ahead of the others.
    """
    server = site.server().start()
    names = [f"{name}/{part}" for part in "abc"]
    x = np.ones((1, 4))
    enough = threading.Event()
    with grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        for one in names:
            create(stub, one, specs.Standardize(4))
        seen: list[int] = []

        def read() -> None:
            while not enough.is_set():
                seen.extend(batches(stub, one) for one in names)

        reader = threading.Thread(target=read)
        reader.start()
        acknowledged, cancelled = asyncio.run(
            cancelling(server.target, [contribution(one, x) for one in names], updates)
        )
        last = pb.UpdateRunningStatsRequest(producer_id=secrets.token_bytes(16), sequence=1)
        last.contributions.extend(contribution(one, x) for one in names)
        stub.UpdateRunningStats(last)  # when it is answered, what came before is committed, or never will be
        enough.set()
        reader.join(10)
        counts = {batches(stub, one) for one in names}
    assert seen == sorted(seen)
    assert len(counts) == 1
    count = counts.pop()
    assert acknowledged + 1 <= count <= updates + 1
    assert cancelled > updates // 10
    promise(
        f"Deadlines: {updates} contributions to three, cancelled at any moment, {site.name}",
        "no half update is visible",
        f"{len(seen)} readings, in order; {cancelled} cancelled, {acknowledged} acknowledged, {count} merged",
    )


def batches(stub: NormalizationServiceStub, name: str) -> int:
    """How many batches a normalizer has merged."""
    return stub.GetRunningStats(pb.GetRunningStatsRequest(normalizer=name)).stats.num_batches


async def cancelling(target: str, contributions: list[pb.Contribution], updates: int) -> tuple[int, int]:
    """Contribute, and cancel at some moment; returns how many were acknowledged, and how many cancelled."""
    moments = random.Random(0)
    acknowledged = cancelled = 0
    usual_seconds = 0.01
    async with grpc.aio.insecure_channel(target) as channel:
        stub = NormalizationServiceStub(channel)
        for _ in range(updates):
            request = pb.UpdateRunningStatsRequest(
                producer_id=secrets.token_bytes(16), sequence=1, contributions=contributions
            )
            started = time.monotonic()
            call = stub.UpdateRunningStats(request)
            done, _ = await asyncio.wait([asyncio.ensure_future(call.code())], timeout=moments.random() * usual_seconds)
            if done:
                assert await call.code() is grpc.StatusCode.OK
                acknowledged += 1
                usual_seconds = 1.5 * (time.monotonic() - started)
            else:
                cancelled += call.cancel()
    return acknowledged, cancelled


def test_a_call_without_a_deadline_has_the_servers(server: ServerProcess, promise: Promise) -> None:
    calls, took = 240, []
    with grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        one_seconds = alone(stub)
        futures = []
        for _ in range(calls):
            begun = time.monotonic()
            futures.append(stub.Normalize.future(heavy.REQUEST))
            futures[-1].add_done_callback(lambda _, begun=begun: took.append(time.monotonic() - begun))
        errors = [error for call in futures if isinstance(error := call.exception(), grpc.RpcError)]
        answered = calls - len(errors)
        stub.Normalize(heavy.REQUEST)
    assert {told_by(error).code for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert answered > 0
    assert DEFAULT_SECONDS < max(took) < DEFAULT_SECONDS + TOLD_SECONDS, (max(took), one_seconds)
    promise(
        f"Deadlines: {calls} calls without one, {DEFAULT_SECONDS} s by default",
        f"DEADLINE_EXCEEDED {TOLD_SECONDS} s later at most",
        f"after {max(took):.2f} s: {answered} answered, {len(errors)} DEADLINE_EXCEEDED",
    )
