"""What was acknowledged is there after kill -9 and after SIGTERM, and is not counted again."""

from __future__ import annotations

import os
import random
import resource
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

import normstats
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, numbers, refused, stats, update
from tests.server_process import ServerProcess


def connected(server: ServerProcess) -> NormalizationServiceStub:
    return NormalizationServiceStub(grpc.insecure_channel(server.target))


def test_acknowledged_before_kill_9_is_there_afterwards_and_its_retry_is_a_duplicate(
    own_server: ServerProcess,
) -> None:
    stub = connected(own_server.start())
    create(stub, "a", specs.Standardize(2))
    request = update("a", np.array([[1.0, 2.0], [3.0, 5.0]]))
    assert not stub.UpdateRunningStats(request).duplicate
    own_server.kill()
    stub = connected(own_server.start())
    before = stats(stub, "a")
    assert numbers(before.mean).tolist() == [2.0, 3.5]
    assert stub.UpdateRunningStats(request).duplicate
    assert stats(stub, "a") == before


@pytest.mark.faults
def test_kill_9_under_load_loses_nothing_acknowledged_and_doubles_nothing_retried(own_server: ServerProcess) -> None:
    """Four producers retry each contribution until it is acknowledged, while the server is killed three times."""
    create(connected(own_server.start()), "a", specs.Standardize(3))
    rng = np.random.default_rng(4)
    shares = [rng.normal(100, 1, (60, 5, 3)) for _ in range(4)]
    duplicates: list[int] = []
    threads = [threading.Thread(target=contribute, args=(own_server, share, duplicates)) for share in shares]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(random.uniform(0.05, 0.3))
        own_server.kill()
        own_server.start()
    for thread in threads:
        thread.join(120)
    found, rows = stats(connected(own_server), "a"), np.concatenate([share.reshape(-1, 3) for share in shares])
    assert numbers(found.count)[0] == len(rows)
    assert found.num_batches == 240
    np.testing.assert_allclose(numbers(found.mean), rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(numbers(found.var), rows.var(axis=0), rtol=1e-12)
    own_server.stop()
    with closing(sqlite3.connect(own_server.folder / "normstats.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def contribute(server: ServerProcess, batches: np.ndarray, duplicates: list[int]) -> None:
    producer = secrets.token_bytes(16)
    with grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        for sequence, batch in enumerate(batches, 1):
            request = update("a", batch, producer=producer, sequence=sequence)
            while True:
                try:
                    reply = stub.UpdateRunningStats(request, timeout=60, wait_for_ready=True)
                    break
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
            duplicates.append(reply.duplicate)


def test_sigterm_commits_and_acknowledges_what_streams_have_sent(own_server: ServerProcess) -> None:
    stub = connected(own_server.start())
    create(stub, "a", specs.Standardize(1))
    stopped = threading.Event()

    def frames() -> object:
        yield pb.UpdateRunningStatsStreamRequest(open={"producer_id": secrets.token_bytes(16)})
        sequence = 0
        while not stopped.is_set():
            sequence += 1
            request = update("a", np.ones((1, 1)))
            yield pb.UpdateRunningStatsStreamRequest(
                update={"sequence": sequence, "contributions": request.contributions}
            )
            time.sleep(0.001)

    watching = stub.WatchRunningStats(pb.WatchRunningStatsRequest(normalizer="a"), timeout=60)
    next(watching)
    threading.Timer(0.5, lambda: os.kill(own_server.process.pid, signal.SIGTERM)).start()  # type: ignore[union-attr]
    acks, ended = until_it_ends(stub.UpdateRunningStatsStream(frames(), timeout=60))
    acknowledged = acks[-1].acknowledged_sequence
    stopped.set()
    assert ended is grpc.StatusCode.UNAVAILABLE
    assert until_it_ends(watching)[1] is grpc.StatusCode.UNAVAILABLE
    assert own_server.process is not None
    assert own_server.process.wait(20) == 0
    found = stats(connected(own_server.start()), "a")
    assert acknowledged > 0
    assert numbers(found.count)[0] == acknowledged, "on SIGTERM all that was taken in is acknowledged"


def until_it_ends(replies: Any) -> tuple[list[Any], grpc.StatusCode]:
    received = []
    try:
        received.extend(reply for reply in replies)
    except grpc.RpcError as error:
        return received, error.code()
    return received, grpc.StatusCode.OK


def test_a_second_process_is_refused_and_told_who_holds_the_store(own_server: ServerProcess) -> None:
    own_server.start()
    assert own_server.process is not None
    command = [sys.executable, "-m", "normserver", "--listen", "127.0.0.1:0", "--http", "", "--store", own_server.store]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert f"is held by process {own_server.process.pid} on " in second.stderr
    assert "an SQLite store serves one process" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_store_of_another_schema_is_refused(own_server: ServerProcess) -> None:
    own_server.start()
    own_server.terminate()
    with closing(sqlite3.connect(own_server.folder / "normstats.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(RuntimeError, match="was written by a later normstats"):
        own_server.start()


def test_a_port_in_use_is_an_error_not_a_silent_twin(own_server: ServerProcess, tmp_path: Path) -> None:
    own_server.start()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(RuntimeError, match="ended with 1"):
        ServerProcess(other, port=own_server.port).start()


def test_a_call_goes_on_until_its_timeout_while_the_store_is_down(own_server: ServerProcess) -> None:
    """Whoever is told Unavailable and calls again draws another sequence, and may be counted twice."""
    own_server.start()
    assert own_server.process is not None
    with normstats.connect(own_server.target) as client:
        normalizer = client.create("a", specs.Standardize(1))
        resource.prlimit(own_server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        everything = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        back = threading.Timer(6, resource.prlimit, (own_server.process.pid, resource.RLIMIT_FSIZE, everything))
        back.start()
        started = time.monotonic()
        normalizer.update(np.ones((1, 1)))
        assert time.monotonic() - started > 5
        assert normalizer.stats().num_batches == 1


def test_a_store_that_cannot_write_acknowledges_nothing_and_comes_back_by_itself(own_server: ServerProcess) -> None:
    """The system refuses every write past the file's present size, as a full disk does."""
    stub = connected(own_server.start())
    create(stub, "a", specs.Standardize(1))
    producer, x = secrets.token_bytes(16), np.ones((1, 1))
    stub.UpdateRunningStats(update("a", x, producer=producer, sequence=1))
    before = stats(stub, "a")
    assert own_server.process is not None
    resource.prlimit(own_server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    started = time.monotonic()
    told = refused(stub.UpdateRunningStats, update("a", x, producer=producer, sequence=2))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert time.monotonic() - started < 5
    assert httpx.get(f"{own_server.http}/readyz").text == "the store is not available\n"
    assert stats(stub, "a") == before, "what is published is what is durable, and still read"
    resource.prlimit(own_server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    deadline = time.monotonic() + 10
    while httpx.get(f"{own_server.http}/readyz").status_code != 200:
        assert time.monotonic() < deadline, "it is back within 10 s"
        time.sleep(0.1)
    assert not stub.UpdateRunningStats(update("a", x, producer=producer, sequence=2)).duplicate
    own_server.kill()
    assert numbers(stats(connected(own_server.start()), "a").count)[0] == 2
