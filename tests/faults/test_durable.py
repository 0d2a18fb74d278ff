"""Durable: what was acknowledged is there, whenever the server or the database is killed."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest

from normserver.app import open_store
from normstats import specs
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, update
from tests.faults.conftest import Promise, Site
from tests.faults.load import Load
from tests.faults.sizes import sized
from tests.faults.strace import killing, need_strace
from tests.server_process import ServerProcess

CALLERS = 4
PATIENCE_SECONDS = 3.0


class Ended(NamedTuple):
    """What was acknowledged before a kill, what was on its way, and what the store holds."""

    acknowledged: int
    in_flight: int
    stored: int


@sized("numbers", (23,), tuple(range(1, 201)))
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "pwrite64"])
@pytest.mark.timeout(3600)
def test_kill_at_any_write(tmp_path: Path, promise: Promise, call: str, numbers: tuple[int, ...]) -> None:
    """kill -9 as a thread makes the Nth such call, the store's making included; then the file is looked at.

    Where there are fewer such calls it comes at some moment under load.
    """
    need_strace()
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda number: killed(tmp_path / f"{number}", call, number), numbers))
    ended = [Ended(*count, stored(tmp_path / f"{number}")) for number, count in zip(numbers, counts, strict=True)]
    for number, one in zip(numbers, ended, strict=True):
        assert one.acknowledged <= one.stored <= one.acknowledged + one.in_flight, (call, number, one)
    acknowledged = sum(one.acknowledged for one in ended)
    promise(
        f"Durable: kill -9 at the Nth {call}, SQLite",
        f"{len(numbers)} of {len(numbers)} with acknowledged <= stored <= acknowledged + in flight, integrity ok",
        f"{len(ended)} of {len(numbers)}; {acknowledged} acknowledged, {sum(one.stored for one in ended)} stored",
    )


def killed(folder: Path, call: str, number: int) -> tuple[int, int]:
    """Contribute until the server is killed; returns how many were acknowledged, and how many in flight."""
    folder.mkdir()
    server = ServerProcess(folder, prefix=killing(call, number))
    acknowledged = in_flight = 0
    try:
        server.start()
    except RuntimeError:
        pass  # killed as it made the store
    else:
        acknowledged, in_flight = contribute_until_it_ends(server)
    finally:
        server.stop()
    return acknowledged, in_flight


def stored(folder: Path) -> int:
    """How many contributions the file holds, which must be sound."""
    with closing(sqlite3.connect(folder / "normstats.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store = open_store(f"sqlite:///{folder / 'normstats.db'}")
    store.open()
    try:
        with store.transaction() as transaction:
            found = transaction.records(("a",))
            running = found["a"].running if "a" in found else None
            return 0 if running is None else int(running.count)
    finally:
        store.close()


def contribute_until_it_ends(server: ServerProcess) -> tuple[int, int]:
    """Each caller without retries, one contribution of one row after another; returns acknowledged and in flight."""
    acknowledged, unanswered = [0] * CALLERS, [0] * CALLERS
    codes: list[grpc.StatusCode | None] = [None] * CALLERS

    def call(index: int) -> None:
        with grpc.insecure_channel(server.target, [("grpc.enable_retries", 0)]) as channel:
            stub = NormalizationServiceStub(channel)
            try:
                while True:
                    request = update("a", np.ones((1, 2)))
                    unanswered[index] = 1
                    stub.UpdateRunningStats(request, timeout=20)
                    unanswered[index] = 0
                    acknowledged[index] += 1
            except grpc.RpcError as error:
                codes[index] = error.code()

    with grpc.insecure_channel(server.target) as channel:
        try:
            create(NormalizationServiceStub(channel), "a", specs.Standardize(2))
        except grpc.RpcError:
            return 0, 0
    threads = [threading.Thread(target=call, args=(index,)) for index in range(CALLERS)]
    for thread in threads:
        thread.start()
    assert server.process is not None
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(PATIENCE_SECONDS)
    server.kill()  # if there are not as many such calls, now
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
    return sum(acknowledged), sum(unanswered)


@sized("kills", 1, 5)
@pytest.mark.timeout(600)
def test_postmaster_killed(postgresql: Site, promise: Promise, name: str, kills: int) -> None:
    server = postgresql.server().start()
    assert postgresql.postgres is not None
    with Load([server.target], name, producers=4, batches=100 * kills, pause=0.002) as load:
        for number in range(kills):
            load.wait_for((number + 1) / (kills + 1))
            postgresql.postgres.kill()
            postgresql.postgres.start()
    seen = load.check(server.target)
    promise(f"Durable: postmaster killed {kills} times", "0 lost", seen)
