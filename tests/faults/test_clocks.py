"""The wall clock steps while a server runs: everything goes on, and each contribution counts once."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import grpc
import httpx
import numpy as np
import pytest

import normstats
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import update
from tests.faults.clock import WallClock, need_faketime
from tests.faults.conftest import Promise, Site

HOUR, YEAR = 3600.0, 365.25 * 86400.0
STEPS = {
    "-30 years": -30 * YEAR,
    "-4 h": -4 * HOUR,
    "-1 s": -1.0,
    "+1 s": 1.0,
    "+25 h": 25 * HOUR,
    "+30 years": 30 * YEAR,
}
FEATURES = 8
BATCH = np.arange(4 * FEATURES, dtype=np.float64).reshape(4, FEATURES)
PRODUCER = bytes(range(16))


@pytest.fixture(autouse=True)
def _faketime() -> None:
    need_faketime()


@pytest.mark.timeout(300)
def test_the_wall_clock_steps(site: Site, promise: Promise) -> None:
    clock = WallClock(site.folder)
    server = site.server("--forget-producers-after-hours", "24", prefix=tuple(clock.prefix)).start()
    with normstats.connect(server.target, timeout=10) as client:
        obs = client.create("robot/obs", normstats.Standardize(FEATURES))
        recent = client.create("robot/recent", normstats.Standardize(FEATURES, half_life=3600))
        assert not contributed_again(server.target)
        recent.update(BATCH)
        slowest, contributed = 0.0, 1
        for seconds in STEPS.values():
            clock.step(seconds)
            with closing(obs.watch()) as watcher:
                before = next(watcher)
                for _ in range(3):  # over more than one beat of all that runs once a second
                    began = time.monotonic()
                    obs.update(BATCH)
                    recent.update(BATCH)
                    contributed += 1
                    slowest = max(slowest, time.monotonic() - began)
                    time.sleep(0.4)
                assert next(watcher).version > before.version
            assert obs.stats().count == contributed * len(BATCH)
            assert contributed_again(server.target), "a producer's window outlives the step"
            assert asyncio.run(_two_members(server.target)) == [2 * len(BATCH)] * 2
            assert obs.history().points[-1].version == obs.stats().version
            activity = client.activity(limit=10)
            assert all(0 < one.contributions_per_second < 100 for one in activity.producers if one.contributions)
            assert activity.load[-1].active_producers >= 1
            obs.snapshot("newest", keep_last=1)
            assert [one.tag for one in obs.snapshots()] == ["newest"]
            obs.delete_snapshot("newest")
            assert httpx.get(f"{server.http}/readyz").status_code == 200
        # Minutes have passed by the monotonic clock: with a half-life of an hour hardly anything has decayed.
        assert recent.stats().count == pytest.approx(contributed * len(BATCH), rel=0.1)
        points = obs.history().points
        assert len(points) > len(STEPS)
        assert [one.version for one in points] == sorted(one.version for one in points)
    began = time.monotonic()
    assert server.terminate() == 0
    assert "Traceback" not in server.log()
    promise(
        f"The wall clock steps by {', '.join(STEPS)}: {site.name}",
        "commits, windows, rounds, metrics, history, shutdown go on",
        f"slowest update {slowest * 1e3:.0f} ms, exit 0 within {time.monotonic() - began:.1f} s",
    )


async def _two_members(target: str) -> list[float]:
    """A round of two, over the clock's new time."""

    async def member() -> float:
        async with await normstats.aio.connect(target) as client:
            obs = await client.get("robot/obs")
            async with obs.join("step", size=2, timeout=5) as one:
                merged = await one.sync(BATCH)
                return float(np.max(merged.count))

    return list(await asyncio.gather(member(), member()))


@pytest.mark.timeout(120)
def test_windows_outlive_a_jump_beyond_their_age(site: Site) -> None:
    """Windows age by the time that servers ran: neither a jump of the wall clock nor a restart after it ages them."""
    clock = WallClock(site.folder)
    server = site.server("--forget-producers-after-hours", "1", prefix=tuple(clock.prefix)).start()
    with normstats.connect(server.target) as client:
        client.create("robot/obs", normstats.Standardize(FEATURES))
    assert not contributed_again(server.target)
    clock.step(25 * HOUR)
    time.sleep(1.5)
    assert contributed_again(server.target)
    assert server.terminate() == 0
    server.start()
    time.sleep(1.5)
    assert contributed_again(server.target)


def test_windows_are_forgotten_after_their_age(site: Site) -> None:
    server = site.server("--forget-producers-after-hours", str(1.0 / 3600)).start()
    with normstats.connect(server.target) as client:
        client.create("robot/obs", normstats.Standardize(FEATURES))
    assert not contributed_again(server.target)
    assert contributed_again(server.target)
    time.sleep(4.0)
    assert not contributed_again(server.target)


def contributed_again(target: str) -> bool:
    """Contribute under one sequence of one producer; whether the server knows it already."""
    with grpc.insecure_channel(target) as channel:
        request = update("robot/obs", BATCH, producer=PRODUCER, sequence=1)
        return bool(NormalizationServiceStub(channel).UpdateRunningStats(request, timeout=10).duplicate)
