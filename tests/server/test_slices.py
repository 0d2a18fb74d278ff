"""Readers of much read it in slices, between which commits go; lists read no statistics at all."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from sqlalchemy import event
from sqlalchemy.engine import Engine

from normcore import Moments, Running, drift, moments_of
from normserver import codec, replies, slices
from normserver.activity.changes import Changes
from normserver.app import open_store
from normserver.comparing import Comparing
from normserver.published import Published
from normserver.records import PIECE_FEATURES, Record, SnapshotHead, policy_of, start
from normserver.store_thread import StoreThread
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, refused, stats, update
from tests.faults.procfs import Process
from tests.postgres import database
from tests.server_process import ServerProcess

PIECES = 32
WIDE = specs.Standardize(PIECES * PIECE_FEATURES - 7)
MOST = 4_194_304


def running(value: float, width: int = WIDE.num_features) -> Running:
    """Statistics whose every feature has this mean."""
    moments = Moments(torch.tensor([3.0, value, 0, 1, 0, value, value], dtype=torch.float64)[:, None].repeat(1, width))
    return Running(moments, torch.tensor(3.0, dtype=torch.float64), 1)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    with database() as fresh:
        yield fresh


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[StoreThread]:
    """A store with one wide normalizer, "wide", at version 2, and a snapshot of it, "a"."""
    store = StoreThread(open_store(url))
    await store.open()
    one = Record("wide", WIDE, 2, running(1.0), False, 1.0, 2.0)

    def fill(transaction: Any) -> None:
        transaction.insert(one)
        transaction.insert_snapshot(SnapshotHead("wide", "a", 2, 3.0, 1, 1.0), WIDE, "")

    await store.run(fill)
    yield store
    await store.close()


def test_lists_read_no_statistics_and_no_parameters(url: str) -> None:
    read: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        read.append(statement)

    store = open_store(url)
    store.open()
    try:
        with store.transaction() as transaction:
            transaction.insert(Record("a", specs.BatchNorm(2, weight=[1, 2]), 2, running(1.0, 2), False, 1.0, 2.0))
            transaction.insert_snapshot(SnapshotHead("a", "x", 2, 3.0, 1, 1.0), specs.Standardize(2), "")
        event.listen(Engine, "before_cursor_execute", note)
        with store.transaction() as transaction:
            (head,) = transaction.page("", "", 10)
            assert (head.num_rows, head.num_batches, head.spec) == (3.0, 1, specs.BatchNorm(2))
            assert transaction.count(("",)) == 1
            assert [kept.num_rows for kept in transaction.snapshots("a", "", 10)] == [3.0]
            assert transaction.usage("").normalizers == 1
        selects = [statement for statement in read if statement.startswith("SELECT")]
        assert len(selects) >= 4
        assert not [statement for statement in selects if "statistics" in statement or "parameters" in statement]
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        store.close()


def test_commits_go_between_the_slices_of_a_read(url: str) -> None:
    async def read(store: StoreThread, kind: str) -> Any:
        if kind == "records":
            return (await slices.records(store, ("wide",)))["wide"].running
        if kind == "snapshot":
            return await slices.snapshot(store, WIDE, SnapshotHead("wide", "a", 2, 3.0, 1, 1.0))
        published = Published(store, Changes())
        return pb.CompareSnapshotsResponse.FromString(await Comparing(store, published).compare("wide", "a", "", 3))

    async def main() -> None:
        async with opened(url) as store:
            for kind in ("records", "snapshot", "compare"):
                reading, commits = asyncio.create_task(read(store, kind)), 0
                while not reading.done():
                    await store.run(lambda transaction: transaction.probe())
                    commits += 1
                assert commits >= PIECES * PIECE_FEATURES // slices.SLICE_FEATURES, kind
                found = await reading
                if kind == "compare":
                    assert [one.symmetric_kl for one in found.features] == [0.0] * 3
                else:
                    assert torch.equal(found.moments.values, running(1.0).moments.values)

    asyncio.run(main())


def test_readers_are_one_at_a_time_before_a_commit(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            done: list[str] = []

            async def read(number: int) -> None:
                await store.read(lambda transaction: transaction.version("wide"))
                done.append(f"read {number}")

            async def commit() -> None:
                await store.run(lambda transaction: transaction.probe())
                done.append("commit")

            reads = [asyncio.create_task(read(number)) for number in range(50)]
            await asyncio.sleep(0)
            await asyncio.gather(asyncio.create_task(commit()), *reads)
            assert done.index("commit") <= 2

    asyncio.run(main())


def test_what_changes_while_it_is_read_is_read_as_of_one_commit(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            reading, version = asyncio.create_task(slices.records(store, ("wide",))), 2
            while not reading.done():
                version += 1
                next_ = Record("wide", WIDE, version, running(float(version)), False, 1.0, 2.0)
                await store.run(lambda transaction, next_=next_: transaction.advance((next_,)))  # type: ignore[misc]
                await asyncio.sleep(0.05)
            found = (await reading)["wide"]
            assert found.running is not None
            expected = 1.0 if found.version == 2 else float(found.version)
            assert torch.equal(found.running.moments.values, running(expected).moments.values)

    asyncio.run(main())


def test_the_answer_of_a_comparison_is_what_protobuf_would_write() -> None:
    x = torch.randn(5, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    policy = policy_of(specs.Standardize(20_000))
    base, other = (policy.estimate(policy.of(moments_of(one, 1))) for one in (x, x * 2 + 1))
    moved = drift.compare(base, other)
    for limit in (0, 1, 8193):
        answer = replies.Compared(*replies.worst(moved, limit), 7, 9)
        for at in answer.starts:
            answer.write(at)
        told = pb.CompareSnapshotsResponse.FromString(answer.serialized)
        order = moved.worst_first()[: limit or None]
        assert (told.base_version, told.version) == (7, 9)
        assert [one.feature for one in told.features] == order.tolist()
        assert [one.mean_shift for one in told.features] == moved.mean_shift[order].tolist()
        assert [one.var_ratio for one in told.features] == moved.var_ratio[order].tolist()
        assert [one.symmetric_kl for one in told.features] == moved.symmetric_kl[order].tolist()


def test_records_in_memory_are_bounded_by_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path / 'store.db'}") as store:
            size = 64 * WIDE.num_features
            published = Published(store, Changes(), capacity_bytes=2 * size + 1)
            one = Record("wide", WIDE, 2, running(1.0), False, 1.0, 2.0)
            published.publish(replace(one, name=f"n/{index}") for index in range(3))
            assert [published.peek(f"n/{index}") is not None for index in range(3)] == [False, True, True]
            published.publish(replace(one, name=f"e/{index}", running=start(WIDE)) for index in range(100))
            assert published.peek("n/1") is not None, "what has seen nothing takes no room"
            published.publish((replace(one, name="n/2", version=3),))
            published.publish((replace(one, name="n/4"),))
            assert [published.peek(f"n/{index}") is not None for index in (1, 2, 4)] == [False, True, True]
            assert await published.serialized(published.peek("n/2"), lambda _: bytes(size)) == bytes(size)  # type: ignore[arg-type]
            assert published.peek("n/4") is None, "what watchers are sent counts too"
            tight = Published(store, Changes(), capacity_bytes=1)
            assert (await tight.get("wide")).version == 2, "the newest is kept, however large"
            assert tight.peek("wide") is not None

    asyncio.run(main())


def test_what_has_changed_keeps_no_statistics_in_memory() -> None:
    changes = Changes()
    one = Record("a", WIDE, 2, running(1.0), False, 1.0, 2.0)
    changes.note(one)
    changes.note(replace(one, name="b"))
    assert [head.name for head in changes.last(lambda _: True, 10)] == ["a", "b"]
    assert changes.take(10) == [one]


def test_a_normalizer_takes_no_room_before_its_first_contribution(own_server: ServerProcess) -> None:
    own_server.start()
    store = own_server.folder
    process = Process(own_server)
    with grpc.insecure_channel(own_server.target) as channel:
        stub = NormalizationServiceStub(channel)
        create(stub, "wide", specs.Standardize(MOST))
        got = stub.GetRunningStats(pb.GetRunningStatsRequest(normalizer="wide")).stats
        assert (got.version, got.count, got.num_batches, got.mean) == (1, bytes(8), 0, b"")
        stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer="wide", tag="a"))
        stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name="wide", reset=True))
        stub.RestoreSnapshot(pb.RestoreSnapshotRequest(normalizer="wide", tag="a"))
        told = refused(stub.CompareSnapshots, pb.CompareSnapshotsRequest(normalizer="wide", base_tag="a"))
        assert told.reason == "NOTHING_SEEN"
        before, size = process.memory_bytes, sum(path.stat().st_size for path in store.glob("normstats.db*"))
        seconds = []
        for index in range(8):
            began = time.perf_counter()
            made = create(stub, f"wide/{index}", specs.Standardize(MOST))
            seconds.append(time.perf_counter() - began)
        assert (made.version, made.count, made.num_batches) == (1, 0.0, 0)
        assert min(seconds) < 0.05
        grown = process.memory_bytes - before
        assert grown < 8 << 20
        assert sum(path.stat().st_size for path in store.glob("normstats.db*")) - size < 1 << 20


def test_before_the_first_contribution_all_is_as_with_stored_statistics(own_server: ServerProcess) -> None:
    own_server.start()
    x = np.array([[1.0, 2.0], [3.0, 5.0]])
    seeded = specs.BatchNorm(2, momentum=0.25, running_mean=[1, 2], running_var=[4, 9])
    with grpc.insecure_channel(own_server.target) as channel:
        stub = NormalizationServiceStub(channel)
        create(stub, "seeded", seeded)
        create(stub, "plain", specs.Standardize(2))
        first = stats(stub, "seeded")
        assert np.frombuffer(first.mean).tolist() == [1.0, 2.0]
        policy = policy_of(seeded)
        seed = policy.seed(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0]))
        assert first.state == codec.encode_running(seed)
        assert stats(stub, "plain").state == codec.encode_running(Running.empty(2))
        stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer="seeded", tag="a"))
        stub.UpdateRunningStats(update("seeded", x, producer=secrets.token_bytes(16)))
        after = stats(stub, "seeded")
        taken = policy.compose(seed, policy.of(moments_of(torch.tensor(x), 1)))
        assert after.state.moments == codec.encode_running(taken).moments
        assert stats(stub, "seeded", "a").state == first.state
        stub.RestoreSnapshot(pb.RestoreSnapshotRequest(normalizer="seeded", tag="a"))
        assert stats(stub, "seeded").state == first.state
    own_server.kill()
    own_server.start()
    with grpc.insecure_channel(own_server.target) as channel:
        stub = NormalizationServiceStub(channel)
        assert stats(stub, "seeded").state == first.state
        told = refused(stub.GetRunningStats, pb.GetRunningStatsRequest(normalizer="nobody"))
        assert told.reason == "NORMALIZER_NOT_FOUND"
