"""A failing store: nothing is acknowledged, everyone is told in time, and the server comes back by itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc
import httpx
import numpy as np
import pytest

from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import told_by, update
from tests.faults.conftest import Promise, Site
from tests.faults.load import FEATURES, ROWS, Load, wait_until
from tests.faults.sizes import sized
from tests.faults.strace import failing, need_strace
from tests.server_process import ServerProcess

DEADLINE = 5.0

Breaking = Callable[[ServerProcess], AbstractContextManager[None]]


@pytest.fixture(params=["EIO, SQLite", "ENOSPC, SQLite", "PostgreSQL stopped"])
def fault(request: pytest.FixtureRequest) -> tuple[str, Site, Breaking]:
    """Its name, where, and a context in which the store fails."""
    where: Site = request.getfixturevalue("postgresql" if "PostgreSQL" in request.param else "sqlite")
    if "SQLite" in request.param:
        need_strace()
    calls, error = ("fdatasync,fsync", "EIO") if "EIO" in request.param else ("pwrite64,fallocate,ftruncate", "ENOSPC")

    @contextmanager
    def broken(server: ServerProcess) -> Iterator[None]:
        if where.postgres is not None:
            where.postgres.stop()
            yield
            where.postgres.start()
            return
        assert server.process is not None
        with failing(server.process.pid, calls, error):
            yield

    return request.param, where, broken


@sized("times", 1, 5)
@pytest.mark.timeout(600)
def test_a_failing_store(fault: tuple[str, Site, Breaking], promise: Promise, name: str, times: int) -> None:
    kind, site, broken = fault
    server = site.server().start()
    told, off, back = [], [], []
    with Load([server.target], name, producers=4, batches=100 * times, pause=0.005) as load:
        for number in range(times):
            load.wait_for((number + 1) / (times + 1))
            with broken(server):
                began = time.monotonic()
                off.append(wait_until(lambda: not ready(server), DEADLINE))
                told.append(refused_after(server, name))
                before = load.done
                time.sleep(0.3)
                assert load.done == before, "nothing is acknowledged while the store fails"
                assert time.monotonic() - began < 30
            back.append(wait_until(lambda: ready(server), 10.0))
    # Each time somebody also asked in vain: that batch was refused, and is not counted.
    promise(
        f"A failing store: {kind}, {times} times",
        "UNAVAILABLE in time, readiness off < 5 s, back < 10 s",
        f"told after {max(told) * 1e3:.0f} ms, off after {max(off):.1f} s, back after {max(back):.1f} s; "
        + load.check(server.target),
    )


def ready(server: ServerProcess) -> bool:
    return httpx.get(f"{server.http}/readyz").status_code == 200


def refused_after(server: ServerProcess, name: str) -> float:
    """How long it takes until a contribution is refused, without retries."""
    with grpc.insecure_channel(server.target, [("grpc.enable_retries", 0)]) as channel:
        stub = NormalizationServiceStub(channel)
        request = update(name, np.zeros((ROWS, FEATURES)), producer=secrets.token_bytes(16))
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            stub.UpdateRunningStats(request, timeout=DEADLINE)
        told = told_by(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        return time.monotonic() - started
