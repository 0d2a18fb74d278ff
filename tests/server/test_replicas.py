"""Several servers on one PostgreSQL: what one commits the others answer with, and nothing is counted twice."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psycopg
import pytest
from sqlalchemy.engine import make_url

import normstats
from normserver.app import open_store
from normserver.producers import Producer, Window
from normserver.published import MAX_AGE_SECONDS
from normserver.store.base import Store, TryAgain
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, stats, update
from tests.postgres import database
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with database() as fresh:
        yield fresh


@pytest.fixture(scope="module")
def replicas(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    both = [ServerProcess(tmp_path_factory.mktemp("replica"), store=url) for _ in range(2)]
    for replica in both:
        replica.start()
    yield both[0], both[1]
    for replica in both:
        replica.stop()


@pytest.fixture
def stubs(replicas: tuple[ServerProcess, ServerProcess]) -> Iterator[list[NormalizationServiceStub]]:
    channels = [grpc.insecure_channel(replica.target) for replica in replicas]
    yield [NormalizationServiceStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture
def stores(url: str) -> Iterator[list[Store]]:
    opened = [open_store(str(make_url(url))) for _ in range(2)]
    for store in opened:
        store.open()
    yield opened
    for store in opened:
        store.close()


def test_what_one_commits_the_other_answers_with_in_a_second_at_most(
    stubs: list[NormalizationServiceStub], name: str
) -> None:
    create(stubs[0], name, normstats.Standardize(2))
    took = []
    for step in range(20):
        stats(stubs[1], name)  # at hand there now
        version = stubs[0].UpdateRunningStats(update(name, np.ones((3, 2)))).contributed[0].version
        started = time.monotonic()
        while stats(stubs[1], name).version < version:
            assert time.monotonic() - started < MAX_AGE_SECONDS + 0.5, step
            time.sleep(0.002)
        took.append(time.monotonic() - started)
    print(f"seen by the other replica after {np.median(took) * 1e3:.1f} ms (median), {max(took) * 1e3:.1f} ms (worst)")
    assert np.median(took) < MAX_AGE_SECONDS / 2, "notifications arrive; the second is for when they do not"


def test_watchers_of_one_see_the_commits_of_the_other(replicas: tuple[ServerProcess, ServerProcess], name: str) -> None:
    with normstats.connect(replicas[0].target) as here, normstats.connect(replicas[1].target) as there:
        normalizer = here.create(name, normstats.Standardize(2))
        seen: list[int] = []
        first = threading.Event()

        def watch() -> None:
            for one in there.get(name).watch(timeout=20):
                seen.append(one.version)
                first.set()
                if one.version == 4:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert first.wait(10)
        for _ in range(3):
            normalizer.update(np.ones((3, 2)))
        watcher.join(10)
        assert seen[0] == 1
        assert seen[-1] == 4
        assert seen == sorted(set(seen))


def test_a_contribution_that_reaches_both_is_counted_once(stubs: list[NormalizationServiceStub], name: str) -> None:
    """As when a client's connection breaks and its retry meets the first attempt, still on its way."""
    create(stubs[0], name, normstats.Standardize(2))
    producers = [secrets.token_bytes(16) for _ in range(8)]
    requests = [
        update(name, np.full((5, 2), float(sequence)), producer=producer, sequence=sequence)
        for producer in producers
        for sequence in range(1, 26)
    ]
    with ThreadPoolExecutor(32) as pool:
        replies = list(
            pool.map(lambda call: call[0].UpdateRunningStats(call[1]), [(s, r) for r in requests for s in stubs])
        )
    assert sum(not reply.duplicate for reply in replies) == len(requests)
    found = stats(stubs[0], name)
    assert np.frombuffer(found.count).tolist() == [5.0 * len(requests)]
    assert found.num_batches == len(requests)


def test_what_a_stream_sent_before_it_broke_is_committed_whole(
    url: str, replicas: tuple[ServerProcess, ServerProcess], stubs: list[NormalizationServiceStub], name: str
) -> None:
    """While another commit takes its time, a stream's contributions wait for theirs, and the stream breaks."""
    create(stubs[0], name, normstats.Standardize(1))
    x, producer, sent = np.ones((1, 1)), secrets.token_bytes(16), threading.Event()
    blocked = threading.Event()

    def frames() -> Iterator[pb.UpdateRunningStatsStreamRequest]:
        yield pb.UpdateRunningStatsStreamRequest(open={"producer_id": producer})
        assert blocked.wait(10)
        for sequence in (1, 2, 3):
            one = update(name, x, sequence=sequence)
            yield pb.UpdateRunningStatsStreamRequest(update={"sequence": sequence, "contributions": one.contributions})
        sent.set()
        time.sleep(20)

    with psycopg.connect(url) as other:
        call = stubs[0].UpdateRunningStatsStream(frames())
        next(call)
        other.execute("SELECT 1 FROM normalizers WHERE name = %s FOR UPDATE", (name,))
        slow = stubs[0].UpdateRunningStats.future(update(name, x))
        wait_for(lambda: waiting_for_locks(url) > 0)
        blocked.set()
        assert sent.wait(10)
        wait_for(lambda: pending(replicas[0]) >= 2)
        call.cancel()
        time.sleep(0.3)
    slow.result(20)
    (ack,) = stubs[0].UpdateRunningStatsStream(
        iter([pb.UpdateRunningStatsStreamRequest(open={"producer_id": producer})]), timeout=20
    )
    assert stats(stubs[0], name).num_batches == 1 + ack.acknowledged_sequence
    assert ack.acknowledged_sequence == 3


def pending(server: ServerProcess) -> float:
    """How many contributions wait for their commit."""
    page = httpx.get(f"{server.http}/metrics").text
    return float(re.findall(r"^normstats_pending_contributions (.*)$", page, re.MULTILINE)[0])


def waiting_for_locks(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
        assert row is not None
        return int(row[0])


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_new_producers_window_is_not_lost_between_two_servers(stores: list[Store]) -> None:
    """Neither finds a row to lock, and each would write the window as if it were the only one."""
    producer = Producer("a", secrets.token_bytes(16))
    barrier = threading.Barrier(2, timeout=10)

    def add(store: Store, sequence: int) -> None:
        barrier.wait()
        with store.transaction() as transaction:
            window = transaction.lock_windows((producer,)).get(producer, Window())
            time.sleep(0.1)
            transaction.put_windows({producer: window.add(sequence)}, 1.0)

    threads = [threading.Thread(target=add, args=(store, 1 + index)) for index, store in enumerate(stores)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    with stores[0].transaction() as transaction:
        assert transaction.windows((producer,)) == {producer: Window(2, 0b11)}


def test_two_that_wait_for_each_other_begin_again(stores: list[Store]) -> None:
    ids = [Producer("a", bytes([65 + index]) * 16) for index in range(2)]
    with stores[0].transaction() as transaction:
        transaction.put_windows({producer: Window(1, 1) for producer in ids}, 1.0)
    barrier, told = threading.Barrier(2, timeout=10), []

    def cross(store: Store, first: Producer, second: Producer) -> None:
        try:
            with store.transaction() as transaction:
                transaction.lock_windows((first,))
                barrier.wait()
                transaction.lock_windows((second,))
        except TryAgain as error:
            told.append(error)

    threads = [
        threading.Thread(target=cross, args=(stores[0], *ids)),
        threading.Thread(target=cross, args=(stores[1], *ids[::-1])),
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert len(told) == 1
    assert "deadlock detected" in str(told[0])


def test_members_at_different_servers_meet_at_one(replicas: tuple[ServerProcess, ServerProcess], name: str) -> None:
    def take_part(index: int) -> list[normstats.Round]:
        with normstats.connect(replicas[index % 2].target) as client:
            member = client.get(name).join("step", 4, timeout=20, update=True)
            with member:
                return [member.sync(np.full((2, 1), 10.0 * step + index)) for step in range(10)]

    with normstats.connect(replicas[0].target) as client, ThreadPoolExecutor(4) as pool:
        normalizer = client.create(name, normstats.Standardize(1))
        found = list(pool.map(take_part, range(4)))
        for step in range(10):
            assert {(one[step].round, float(one[step].mean[0]), one[step].count) for one in found} == {
                (step + 1, 10.0 * step + 1.5, 8)
            }
        assert (normalizer.stats().count, normalizer.stats().num_batches) == (80, 10)


def test_rounds_go_on_at_another_server_when_theirs_dies(url: str, tmp_path: Path, name: str) -> None:
    own = [ServerProcess(tmp_path, store=url).start() for _ in range(2)]
    steps, started = 200, threading.Event()

    def take_part(index: int) -> None:
        # Either address will do: a client's list of servers is its load balancer's business.
        target = f"ipv4:{own[0].target},{own[1].target}"
        with normstats.connect(target, timeout=60) as client:
            member = client.get(name).join("step", 3, timeout=30, update=True)
            with member:
                for step in range(steps):
                    try:
                        member.sync(np.full((2, 1), 1.0 * step))
                    except normstats.FailedPrecondition as error:
                        # Killed when it had told the others: the part was merged, and must not be given again.
                        if error.reason != "RESULT_LOST":
                            raise
                    if step == 5:
                        started.set()

    try:
        with normstats.connect(own[0].target) as client:
            client.create(name, normstats.Standardize(1))
        with normstats.connect(own[1].target, timeout=60) as client, ThreadPoolExecutor(3) as pool:
            given = [pool.submit(take_part, index) for index in range(3)]
            assert started.wait(30)
            own[0].kill()
            for one in given:
                one.result(90)
            found = client.get(name).stats()
        assert (found.count, found.num_batches) == (6 * steps, steps)
    finally:
        for replica in own:
            replica.stop()


def test_processes_share_a_port_and_a_store(url: str, tmp_path: Path, name: str) -> None:
    server = ServerProcess(tmp_path, store=url, processes=2)
    try:
        server.start()
        with normstats.connect(server.target) as client:
            client.create(name, normstats.Standardize(1))

        def work(index: int) -> Any:
            with normstats.connect(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as client:
                normalizer = client.get(name)
                for _ in range(20):
                    normalizer.update(np.ones((2, 1)))
                with normalizer.join("step", 6, timeout=20) as member:
                    return [member.sync(np.ones((1, 1))).count for _ in range(5)]

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(work, range(6))) == [[6] * 5] * 6
        with normstats.connect(server.target) as client:
            assert client.get(name).stats().count == 240
        assert server.terminate() == 0
    finally:
        server.stop()


def test_processes_on_sqlite_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="an SQLite file serves one process"):
        ServerProcess(tmp_path, processes=2).start()
