"""The supervisor of tasks and the retention clock, without a server."""

from __future__ import annotations

import asyncio

import pytest

from normserver.retention import RetentionClock
from normserver.supervisor import Supervisor


async def forever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise RuntimeError("a bug")


async def returns() -> None:
    return


@pytest.mark.parametrize(("run", "reason"), [(fails, "RuntimeError: a bug"), (returns, "returned")])
async def test_a_core_task_that_ends_is_a_failure(run: object, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    failed = asyncio.Event()
    supervisor = Supervisor(failed.set)
    supervisor.core("other", forever)
    supervisor.core("one", run)  # type: ignore[arg-type]
    await asyncio.wait_for(failed.wait(), 1)
    assert supervisor.failure == f"task one ended unexpectedly ({reason})"
    await supervisor.cancel()
    assert supervisor.failure.startswith("task one"), "the first failure stays"
    assert ("RuntimeError" in caplog.text) == (run is fails)


async def test_a_core_task_may_end_while_the_server_stops() -> None:
    supervisor = Supervisor(lambda: pytest.fail("that is no failure"))
    supervisor.core("one", forever)
    supervisor.stop()
    supervisor.thread_ended("http")
    await supervisor.cancel()
    assert supervisor.failure == ""


async def test_an_auxiliary_task_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normserver.supervisor.RESTART_SECONDS", 0.0)
    supervisor, times = Supervisor(lambda: pytest.fail("that is no failure")), 0
    again = asyncio.Event()

    async def run() -> None:
        nonlocal times
        times += 1
        if times == 3:
            again.set()
            await forever()
        raise RuntimeError("a bug")

    supervisor.auxiliary("one", run)
    await asyncio.wait_for(again.wait(), 1)
    await supervisor.cancel()
    assert (times, supervisor.failure) == (3, "")


def test_the_retention_clock_goes_on_from_the_newest_reading() -> None:
    now = 1000.0
    clock = RetentionClock(lambda: now)
    assert clock.now() == 0.0
    clock.catch_up(500.0)
    now += 10.0
    assert clock.now() == 510.0
    clock.catch_up(505.0)
    assert clock.now() == 510.0, "an older reading changes nothing"
