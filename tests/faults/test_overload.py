"""Overload is refused at once, while health answers, and costs those who are served little."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import create, described, update
from tests.faults import health, heavy
from tests.faults.conftest import Promise, Site
from tests.faults.health import watched
from tests.faults.offered import Asked, carried_per_second, generator, offered
from tests.faults.sizes import sized
from tests.faults.strace import need_strace, slowing
from tests.server_process import ServerProcess

TIMES, DEADLINE_SECONDS = 16, 2.0
# As many as it takes to keep a server busy with small calls.
CALLERS = 16
SYNC_SECONDS, PENDING = 0.25, 16


class Processors(NamedTuple):
    """The server has one, whoever calls it the others."""

    server: int
    callers: set[int]

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before the server's command."""
        return "taskset", "--cpu-list", str(self.server)


@pytest.fixture
def processors() -> Processors:
    """So that the load takes nothing away from the server."""
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not installed")
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        pytest.skip("a second processor is not there")
    return Processors(first, set(others))


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_calls_beyond_what_is_carried(sqlite: Site, promise: Promise, processors: Processors) -> None:
    # Well above what it costs to refuse, some 0.5 ms: 15 times that is a twentieth of it.
    asked = Asked("Normalize", heavy.request(8192).SerializeToString())
    flags = ("--health", "127.0.0.1:0", "--max-calls", "4")
    server = sqlite.server(*flags, prefix=processors.prefix).start()
    seen = overload(server, asked, "CALL_LIMIT", (2, 4), processors, 10.0)
    promise("Overload: calls", DEMANDED, seen)


@sized("seconds", 2.0, 10.0)
@pytest.mark.timeout(300)
def test_more_callers_than_are_needed(sqlite: Site, promise: Promise, processors: Processors, seconds: float) -> None:
    x = np.ones((1, 1024), np.float32)
    spec = spec_wire.to_proto(specs.LayerNorm(1024))
    asked = Asked("Normalize", pb.NormalizeRequest(spec=spec, input=described(x), data=x.tobytes()).SerializeToString())
    server = sqlite.server(prefix=processors.prefix).start()
    with generator(processors.callers) as process:
        few, many = (
            process.submit(carried_per_second, server.target, asked, callers, seconds).result()
            for callers in (CALLERS, TIMES * CALLERS)
        )
    seen = f"{few:.0f}/s to {CALLERS} callers, {many:.0f}/s to {TIMES * CALLERS}: {many / few:.0%}"
    assert many >= 0.8 * few, seen
    promise("Overload: small calls", f"{TIMES} times the callers: 80 % of the rate", seen)


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_contributions_beyond_what_is_committed(
    sqlite: Site, promise: Promise, processors: Processors, name: str
) -> None:
    need_strace()
    prefix = (*slowing("fdatasync", SYNC_SECONDS), *processors.prefix)
    flags = ("--health", "127.0.0.1:0", "--max-pending-contributions", str(PENDING))
    server = sqlite.server(*flags, prefix=prefix).start()
    with grpc.insecure_channel(server.target) as channel:
        create(NormalizationServiceStub(channel), name, specs.Standardize(4))
    asked = Asked("UpdateRunningStats", update(name, np.ones((2, 4))).SerializeToString(), draws=True)
    seen = overload(server, asked, "QUEUE_FULL", (2 * PENDING,), processors, 10.0)
    promise("Overload: contributions, a slow disk", DEMANDED, seen)


DEMANDED = f"{TIMES} x the best rate: 80 % of it answered, refused < 50 ms, health < 100 ms"


def overload(
    server: ServerProcess,
    asked: Asked,
    reason: str,
    callers: tuple[int, ...],
    processors: Processors,
    seconds: float,
) -> str:
    """Find the best rate, offer many times as much, and hold what is seen against the promise."""
    with generator(processors.callers) as process:
        best = max(
            process.submit(carried_per_second, server.target, asked, number, seconds / 2).result() for number in callers
        )
        with watched(server) as answers:
            found = process.submit(offered, server.target, asked, TIMES * best, seconds, DEADLINE_SECONDS).result()
    share = found.answered_per_second / best
    refused = float(np.quantile(found.refused_seconds, 0.99)) if found.refused_seconds else float("nan")
    seen = (
        f"{best:.0f}/s at best; {share:.0%} of it, refused within {refused * 1e3:.0f} ms (99 %; callers "
        f"{found.late_seconds * 1e3:.0f} ms late)"
    )
    assert set(found.told) == {"OK", f"RESOURCE_EXHAUSTED {reason}"}, (found.told, seen)
    assert share >= 0.8, seen
    assert refused < 0.05, seen
    return f"{seen}, {health.check(answers)}"
