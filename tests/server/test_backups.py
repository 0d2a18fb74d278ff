"""A backup is the whole store as of one commit, and commits go on while it is made."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

import normstats
from normcore import Running
from normserver.app import open_store
from normserver.records import Record
from normserver.store import sqlite
from normserver.store.base import CopyFailed, StoreUnavailable
from normserver.store.reading import sqlite_file
from normserver.store.restoring import restore
from normserver.store.sqlite import SqliteStore
from normserver.store.verifying import verify
from normserver.store_thread import StoreThread
from normstats import specs
from normstats.backup import BackupFile
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, numbers, refused, stats, update
from tests.postgres import database
from tests.server_process import ServerProcess


def connected(server: ServerProcess) -> NormalizationServiceStub:
    return NormalizationServiceStub(grpc.insecure_channel(server.target))


def fill(path: Path, count: int, features: int) -> None:
    """A store of many normalizers, with statistics."""
    store = open_store(f"sqlite:///{path}")
    store.open()
    spec = specs.Standardize(features)
    with store.transaction() as transaction:
        for number in range(count):
            transaction.insert(Record(f"many/{number}", spec, 1, Running.empty(features), False, 1.0, 1.0))
    store.close()


def received(pieces: Any) -> bytes:
    """The backup, checked against what its first and last messages say of it."""
    pieces = list(pieces)
    data = b"".join(piece.data for piece in pieces)
    assert [piece.size_bytes for piece in pieces] == [len(data)] + [0] * (len(pieces) - 1)
    assert [piece.sha256 for piece in pieces] == [b""] * (len(pieces) - 1) + [hashlib.sha256(data).digest()]
    assert max(len(piece.data) for piece in pieces) <= 1 << 20
    return data


class Producers:
    """Four producers that contribute to "a" and "b", all or nothing, row by row: 1, 2, 3, ...; each counts its own."""

    def __init__(self, server: ServerProcess) -> None:
        self.ids = [secrets.token_bytes(16) for _ in range(4)]
        self.acknowledged = [0] * 4
        self.slowest_seconds = 0.0
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, number)) for number in range(4)]

    def request(self, number: int, sequence: int) -> pb.UpdateRunningStatsRequest:
        row = np.array([[float(sequence), float(number)]])
        both = update("a", row, producer=self.ids[number], sequence=sequence)
        both.contributions.extend(update("b", row).contributions)
        both.contributions.extend(update(f"own/{number}", row).contributions)
        return both

    def __enter__(self) -> Producers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, server: ServerProcess, number: int) -> None:
        with grpc.insecure_channel(server.target) as channel:
            stub = NormalizationServiceStub(channel)
            while not self._stopping.is_set():
                began = time.monotonic()
                stub.UpdateRunningStats(self.request(number, self.acknowledged[number] + 1), timeout=30)
                self.acknowledged[number] += 1
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)


def test_a_backup_under_load_is_one_commit_and_what_it_counted_is_not_counted_again(
    own_server: ServerProcess, tmp_path: Path
) -> None:
    fill(tmp_path / "normstats.db", 300, 256)
    stub = connected(own_server.start())
    for name in ("a", "b", *(f"own/{number}" for number in range(4))):
        create(stub, name, specs.Standardize(2))
    with normstats.connect(own_server.target) as client, Producers(own_server) as producers:
        for number in range(3):
            time.sleep(0.1)
            before = sum(producers.acknowledged)
            client.back_up(tmp_path / f"{number}.db")
            after = sum(producers.acknowledged)
    own_server.kill()
    restored = tmp_path / "elsewhere" / "store.db"
    restored.parent.mkdir()
    report, _ = restore(tmp_path / "2.db", restored, force=False)
    assert (report.sound, report.normalizers, report.producers) == (True, 306, 4)
    elsewhere = ServerProcess(tmp_path, store=f"sqlite:///{restored}").start()
    try:
        stub = connected(elsewhere)
        a, b = stats(stub, "a"), stats(stub, "b")
        counted = [int(numbers(stats(stub, f"own/{number}").count)[0]) for number in range(4)]
        assert before <= sum(counted) <= after + 4, "no acknowledged before it is missing, and none from after it there"
        assert (a.version, numbers(a.count)[0]) == (b.version, numbers(b.count)[0])
        assert numbers(a.count)[0] == sum(counted), "all of one commit"
        rows = np.concatenate([np.arange(1.0, count + 1) for count in counted])
        np.testing.assert_allclose(numbers(a.mean)[0], rows.mean(), rtol=1e-14)
        np.testing.assert_allclose(numbers(a.var)[0], rows.var(), rtol=1e-12)
        for number, count in enumerate(counted):
            assert stub.UpdateRunningStats(producers.request(number, count)).duplicate
            assert stub.UpdateRunningStats(producers.request(number, 1 + count // 2)).duplicate
            assert not stub.UpdateRunningStats(producers.request(number, count + 1)).duplicate
        assert numbers(stats(stub, "a").count)[0] == sum(counted) + 4
    finally:
        elsewhere.stop()


def test_commits_go_on_while_2000_normalizers_are_backed_up(own_server: ServerProcess, tmp_path: Path) -> None:
    fill(tmp_path / "normstats.db", 2000, 1024)
    stub = connected(own_server.start())
    for name in ("a", "b", *(f"own/{number}" for number in range(4))):
        create(stub, name, specs.Standardize(2))
    with Producers(own_server) as producers:
        time.sleep(0.5)
        producers.slowest_seconds, before, began = 0.0, sum(producers.acknowledged), time.monotonic()
        pieces = stub.BackUp(pb.BackUpRequest(), timeout=60)
        first = next(pieces)
        during, slowest = sum(producers.acknowledged) - before, producers.slowest_seconds
        copying = time.monotonic() - began
        data = received([first, *pieces])
    assert len(data) > 2000 * 1024 * 6 * 8
    assert during > 20, "copied in one go, it was as many as were on their way before"
    assert slowest < copying / 2


@pytest.fixture
def large(own_server: ServerProcess, tmp_path: Path) -> ServerProcess:
    """A server whose store is larger than what a stream takes that nobody reads."""
    fill(tmp_path / "normstats.db", 100, 16_384)
    return own_server.start()


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "backing-up" in path.name or "partial" in path.name]


def test_one_backup_at_a_time_and_another_when_it_was_given_up(large: ServerProcess, tmp_path: Path) -> None:
    stub = connected(large)
    pieces = stub.BackUp(pb.BackUpRequest(), timeout=60)
    next(pieces)
    told = refused(stub.BackUp, pb.BackUpRequest())
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKUP_UNDER_WAY")
    pieces.cancel()
    deadline = time.monotonic() + 10
    while True:
        try:
            data = received(stub.BackUp(pb.BackUpRequest(), timeout=60))
            break
        except grpc.RpcError as error:
            under_way = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert under_way
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "backup.db").write_bytes(data)
    with sqlite_file(tmp_path / "backup.db") as connection:
        assert verify(connection).sound
    assert leftovers(tmp_path) == []


def test_a_stopping_server_ends_backups_and_the_client_begins_again(large: ServerProcess, tmp_path: Path) -> None:
    restarted: list[float] = []

    def restart() -> None:
        began = time.monotonic()
        assert large.terminate() == 0
        restarted.append(time.monotonic() - began)
        large.start()

    restarting = threading.Thread(target=restart)

    def slowly(written_bytes: int, size_bytes: int) -> None:
        if not restarting.ident:
            restarting.start()
        if not restarted:
            time.sleep(0.05)

    with normstats.connect(large.target) as client:
        made = client.back_up(tmp_path / "backup.db", progress=slowly)
    restarting.join()
    assert restarted[0] < 10, "the server does not wait until all is read"
    assert hashlib.sha256((tmp_path / "backup.db").read_bytes()).hexdigest() == made.sha256
    assert leftovers(tmp_path) == []


async def test_the_asyncio_client_backs_up_too_and_replaces_only_if_it_is_forced(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "backup.db"
    path.write_text("mine")
    async with normstats.aio.connect(server.target) as client:
        with pytest.raises(FileExistsError, match="is there already"):
            await client.back_up(path)
        assert path.read_text() == "mine"
        written: list[tuple[int, int]] = []
        made = await client.back_up(path, force=True, progress=lambda *numbers: written.append(numbers))
    assert written[-1] == (made.size_bytes, made.size_bytes) == (path.stat().st_size,) * 2
    assert path.stat().st_mode & 0o777 == 0o600
    assert leftovers(tmp_path) == []


def test_no_server_is_told_within_the_timeout_and_leaves_nothing(tmp_path: Path) -> None:
    with normstats.connect("127.0.0.1:1", timeout=0.5) as client:
        began = time.monotonic()
        with pytest.raises(normstats.Unavailable):
            client.back_up(tmp_path / "backup.db")
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["cut", "changed"])
def test_what_did_not_arrive_as_it_was_sent_is_no_backup(tmp_path: Path, spoil: str) -> None:
    data = b"0123456789"
    pieces = [
        pb.BackUpResponse(size_bytes=10, data=data[:5]),
        pb.BackUpResponse(data=data[5:], sha256=hashlib.sha256(data).digest()),
    ]
    pieces = pieces[:1] if spoil == "cut" else [pieces[0], pb.BackUpResponse(data=b"56780", sha256=pieces[1].sha256)]
    with BackupFile(tmp_path / "backup.db", force=False) as file:
        for piece in pieces:
            file.write(piece)
        with pytest.raises(normstats.NormstatsError, match="of 10 bytes arrived"):
            file.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_postgresql_server_says_which_tools_to_use(tmp_path: Path) -> None:
    with database() as url:
        server = ServerProcess(tmp_path, store=url).start()
        try:
            told = refused(connected(server).BackUp, pb.BackUpRequest())
        finally:
            server.stop()
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_OFFERED")
    assert "pg_dump" in told.sentence


def test_what_a_killed_server_left_is_deleted_and_nothing_else(own_server: ServerProcess, tmp_path: Path) -> None:
    left = tmp_path / "normstats.db.backing-up-0123456789abcdef"
    others = [tmp_path / "normstats.db.backup", tmp_path / "other.db.backing-up-0123456789abcdef"]
    for path in (left, *others):
        path.write_text("half")
    own_server.start()
    assert not left.exists()
    assert all(path.exists() for path in others)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    fill(tmp_path / "store.db", 200, 1024)
    opened = SqliteStore(make_url(f"sqlite:///{tmp_path / 'store.db'}"))
    opened.open()
    yield opened
    opened.close()


def versions(path: Path) -> dict[str, int]:
    with sqlite_file(path) as connection:
        rows = connection.execute(text("SELECT name, version FROM normalizers"))
        return {row.name: row.version for row in rows}


def test_a_copy_has_the_transactions_that_came_between_its_steps(store: SqliteStore) -> None:
    """Each transaction changes the first, the last, and adds one: pages that are copied already, and that are not."""
    copy = store.copy()
    steps = 0
    while not copy.step():
        steps += 1
        with store.transaction() as transaction:
            for record in transaction.records(["many/0", "many/199"]).values():
                transaction.update(replace(record.head, version=record.version + 1))
            transaction.insert(replace(record, name=f"new/{steps}"))
    assert steps > 5
    found = versions(copy.path)
    assert len(found) == 200 + steps
    assert found["many/0"] == found["many/199"] == 1 + steps
    assert found[f"new/{steps}"] == steps
    with sqlite_file(copy.path) as connection:
        assert verify(connection).sound
    assert copy.path.read_bytes()[18:20] == b"\x01\x01", "SQLite's format for a file that has no log beside it"
    assert leftovers(copy.path.parent) == [copy.path.name]


def test_a_store_that_fails_while_it_is_copied_opens_again(store: SqliteStore, tmp_path: Path) -> None:
    copy = store.copy()
    copy.step()
    with pytest.raises(StoreUnavailable), store.transaction() as transaction:
        transaction._connection.exec_driver_sql("SELECT * FROM nowhere")
    with pytest.raises(StoreUnavailable, match="while it was copied"):
        copy.step()
    with store.transaction() as transaction:
        assert transaction.records(["many/0"])
    assert leftovers(tmp_path) == []


def test_a_copy_that_cannot_be_written_fails_alone(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = store.copy()
    copy.path.touch()
    with pytest.raises(CopyFailed, match="File exists"):
        copy.step()
    monkeypatch.setattr(sqlite, "_LEFT_BYTES", 1 << 62)
    with pytest.raises(CopyFailed, match="bytes free"):
        store.copy()
    with store.transaction() as transaction:
        assert transaction.records(["many/0"])
    assert leftovers(tmp_path) == []


def test_a_copy_that_nobody_waits_for_makes_room_for_the_next(store: SqliteStore, tmp_path: Path) -> None:
    store.copy().step()
    copy = store.copy()
    while not copy.step():
        pass
    assert leftovers(tmp_path) == [copy.path.name]
    copy.abandon()
    assert copy.path.exists(), "it is the caller's"


async def test_a_copy_whose_caller_has_gone_leaves_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "store.db", 200, 1024)
    thread = StoreThread(SqliteStore(make_url(f"sqlite:///{tmp_path / 'store.db'}")))
    await thread.open()
    copying = asyncio.create_task(thread.copy())
    while not leftovers(tmp_path):  # noqa: ASYNC110 (the store's thread is waited for)
        await asyncio.sleep(0)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    await thread.run(lambda transaction: transaction.probe())
    assert leftovers(tmp_path) == []
    await thread.close()
