"""What every store promises, held against each there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy.engine import URL, make_url

from normcore import Moments, Running, moments_of
from normserver.app import open_store
from normserver.producers import Producer, Window
from normserver.records import (
    PIECE_FEATURES,
    Lease,
    Record,
    SnapshotHead,
    Usage,
    part,
    policy_of,
    start,
    stored_bytes,
)
from normserver.store.base import Store, StoreError, StoreUnavailable
from normserver.store.sqlite import SqliteStore
from normstats import specs
from tests.postgres import database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    if request.param == "sqlite":
        yield make_url(f"sqlite:///{tmp_path / 'store.db'}")
        return
    with database() as fresh:
        yield make_url(fresh)


@pytest.fixture
def store(url: URL) -> Iterator[Store]:
    opened = open_store(url.render_as_string(hide_password=False))
    opened.open()
    yield opened
    opened.close()


def record(name: str, spec: specs.Spec | None = None) -> Record:
    spec = spec or specs.Standardize(2)
    running = None
    if isinstance(spec, specs.RunningSpec):
        running = policy_of(spec).seed(
            torch.tensor([1.0, 1e8 + 1 / 3]), torch.tensor([0.1, 2.0]), count=3, num_batches=2
        )
    return Record(name, spec, 5, running, False, 1.25, 1700000000.123457, creator="somebody")


def same(one: Running | None, other: Running | None) -> bool:
    if one is None or other is None:
        return one is other
    fields = ("count", "mean", "mean_low", "m2", "m2_low", "min", "max")
    return all(torch.equal(getattr(one.moments, f), getattr(other.moments, f)) for f in fields) and (
        torch.equal(one.count, other.count) and (one.num_batches, one.time) == (other.num_batches, other.time)
    )


@pytest.mark.parametrize(
    "spec",
    [specs.Standardize(2, half_life=3), specs.BatchNorm(2, weight=[1, 2]), specs.LayerNorm(4, bias=[1, 2, 3, 4])],
)
def test_what_is_written_is_read_to_the_bit(store: Store, spec: specs.Spec) -> None:
    written = record("a", spec)
    with store.transaction() as transaction:
        transaction.insert(written)
    with store.transaction() as transaction:
        (read,) = transaction.records(("a", "b")).values()
    assert replace(read, running=None) == replace(written, running=None)
    assert same(read.running, written.running)


@pytest.mark.parametrize("count", [7.0, None], ids=["one count", "a count a feature"])
def test_wide_statistics_are_written_in_pieces_and_read_to_the_bit(store: Store, count: float | None) -> None:
    width = 2 * PIECE_FEATURES + 5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, width, dtype=torch.float64, generator=generator)
    values = moments_of(x, 1).values
    if count is None:
        values[0, ::2] = 8
    running = Running(Moments(values), values[0] if count is None else values[0, 0], 3)
    written = Record("wide", specs.Standardize(width), 2, running, False, 1.0, 2.0)
    with store.transaction() as transaction:
        transaction.insert(replace(written, version=1, running=start(written.spec)))
        assert transaction.piece("wide", "", 0) is None, "no room is taken before the first contribution"
        transaction.advance((written,))
        transaction.insert_snapshot(SnapshotHead("wide", "a", 2, 3.0, 2, 1.0), written.spec, "")
        transaction.advance((replace(written, version=3, running=Running(moments_of(x + 1, 1), running.count, 3)),))
        transaction.copy_statistics("wide", "a", "")
    with store.transaction() as transaction:
        read = transaction.records(("wide",))["wide"]
        assert same(read.running, running)
        assert len(transaction.piece("wide", "a", PIECE_FEATURES) or b"") < (1 << 20) + 64
        transaction.clear_statistics("wide")
        again = transaction.records(("wide",))["wide"].running
        assert again is not None
        assert again.is_empty
    assert read.running is not None
    for at in range(0, width, PIECE_FEATURES):
        assert torch.equal(part(read.running, at).moments.mean, values[1, at : at + PIECE_FEATURES])


def test_what_an_identity_has_made_is_counted_until_it_is_deleted(store: Store) -> None:
    spec = specs.BatchNorm(2, weight=[1, 2])
    size = stored_bytes(spec)
    assert size == 2 * 8 + 2 * 64
    with store.transaction() as transaction:
        for creator, name in (("one", "a"), ("one", "b"), ("other", "c")):
            transaction.insert(replace(record(name, spec), creator=creator))
        assert (transaction.usage("one"), transaction.usage("nobody")) == (Usage(2, 2 * size), Usage(0, 0))
        transaction.insert_snapshot(SnapshotHead("a", "x", 5, 3.0, 2, 2.5), spec, "other")
        assert transaction.usage("other") == Usage(1, size + 128)
        transaction.update(replace(record("b", spec.with_parameters(weight=None)), creator="one").head)
        assert transaction.usage("one") == Usage(2, 2 * size - 16)
        transaction.delete("a")
        assert (transaction.usage("one"), transaction.usage("other")) == (Usage(1, size - 16), Usage(1, size))


def test_a_block_that_fails_is_undone(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as transaction:
            transaction.insert(record("a"))
            transaction.put_windows({Producer("a", bytes(16)): Window(1, 1)}, 1.0)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    with store.transaction() as transaction:
        assert transaction.records(("a",)) == {}
        assert transaction.windows((Producer("a", bytes(16)),)) == {}


def test_names_come_in_pages_and_by_prefix(store: Store) -> None:
    names = ["a", "a/b", "a/c", "ab", "b", "zz"]
    with store.transaction() as transaction:
        for name in reversed(names):
            transaction.insert(record(name))
    with store.transaction() as transaction:
        whole = transaction.page("", "", 10)
        assert [one.name for one in whole] == names
        assert whole[0] == record("a").head
        assert [one.name for one in transaction.page("", "a/b", 2)] == ["a/c", "ab"]
        assert [one.name for one in transaction.page("a/", "", 10)] == ["a/b", "a/c"]
        assert [one.name for one in transaction.page("zz", "", 10)] == ["zz"]
        assert transaction.page("a%", "", 10) == []


def test_windows_are_remembered_until_they_are_idle(store: Store) -> None:
    many = {
        Producer(identity, number.to_bytes(16, "big")): Window(number + shift, 1)
        for shift, identity in enumerate(("a", "b", "group:a/b"))
        for number in range(1, 1500)
    }
    with store.transaction() as transaction:
        transaction.put_windows(many, 10.0)
    changed = {Producer("b", (7).to_bytes(16, "big")): Window(9, 0b101)}
    with store.transaction() as transaction:
        transaction.put_windows(changed, 20.0)
        assert transaction.windows(many) == many | changed
        assert transaction.forget_producers(10.0, 10_000) == 0
        assert transaction.forget_producers(20.0, 2000) == 2000
        assert transaction.forget_producers(20.0, 10_000) == len(many) - 2001
        assert transaction.windows(many) == changed


def test_snapshots_go_with_their_normalizer(store: Store) -> None:
    one = record("a")
    assert one.running is not None
    with store.transaction() as transaction:
        transaction.insert(one)
        for tag in ("y", "x"):
            transaction.insert_snapshot(SnapshotHead("a", tag, 5, 3.0, 2, 2.5), one.spec, "")
    with store.transaction() as transaction:
        assert [kept.tag for kept in transaction.snapshots("a", "", 10)] == ["x", "y"]
        assert [kept.tag for kept in transaction.snapshots("a", "x", 10)] == ["y"]
        assert transaction.snapshot("a", "x") == SnapshotHead("a", "x", 5, 3.0, 2, 2.5)
        assert transaction.piece("a", "x", 0) == transaction.piece("a", "", 0) is not None
        transaction.delete_snapshot("a", "x")
        assert transaction.snapshot("a", "x") is transaction.piece("a", "x", 0) is None
        transaction.delete("a")
        transaction.insert(one)
        assert transaction.snapshots("a", "", 10) == []


def test_the_newest_snapshots_are_kept(store: Store) -> None:
    one = record("a")
    assert one.running is not None
    with store.transaction() as transaction:
        transaction.insert(one)
        for time, tag in enumerate(("z", "y", "x", "w")):
            transaction.insert_snapshot(SnapshotHead("a", tag, 5 + time, 3.0, 2, float(time)), one.spec, "")
        assert transaction.oldest_tags("a", 4) == []
        assert transaction.oldest_tags("a", 2) == ["y", "z"]


def test_it_opens_again_after_a_failure(store: Store) -> None:
    """A statement that the database cannot run costs the connection, not the store."""
    with store.transaction() as transaction:
        transaction.insert(record("a"))
    with pytest.raises(StoreUnavailable), store.transaction() as transaction:
        transaction._connection.exec_driver_sql("SELECT * FROM nowhere")  # type: ignore[attr-defined]
    assert store._engine is None, "a handle that failed is not used again"  # type: ignore[attr-defined]
    with store.transaction() as transaction:
        assert list(transaction.records(("a",))) == ["a"]


def test_a_lease_is_one_owners_until_it_is_over_or_given_up(store: Store) -> None:
    with store.transaction() as transaction:
        first = transaction.take_lease("g", "here:1", 60, None)
        assert (first.owner, first.lease) == ("here:1", Lease("g", 1))
        other = transaction.take_lease("g", "there:2", 60, None)
        assert (other.owner, other.lease) == ("here:1", first.lease)
        assert 59 < other.seconds <= 60
        assert transaction.take_lease("g", "here:1", 60, first.lease).lease == first.lease, "renewed"
        assert transaction.held({first.lease, Lease("h", 1)}) == {first.lease}
    with store.transaction() as transaction:
        transaction.release_leases(["g"], "there:2")
        assert transaction.take_lease("g", "there:2", 60, None).owner == "here:1"
        transaction.release_leases(["g"], "here:1")
        after = transaction.take_lease("g", "there:2", 0.0, None)
        assert (after.owner, after.lease) == ("there:2", Lease("g", 2))
        assert transaction.held({first.lease, after.lease}) == {after.lease}
        again = transaction.take_lease("g", "here:1", 60, first.lease)
        assert (again.owner, again.lease) == ("here:1", Lease("g", 3)), "the other's is over, and so is the first"


def test_tables_of_a_later_release_are_refused(url: URL, store: Store) -> None:
    with store.transaction() as transaction:
        transaction._connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")  # type: ignore[attr-defined]
    store.close()
    with pytest.raises(StoreError, match="was written by a later normstats"):
        store.open()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_store_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="names no file"):
        SqliteStore(make_url(url))


def test_a_store_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no folder"):
        SqliteStore(make_url(f"sqlite:///{tmp_path}/nowhere/store.db")).open()


def test_nobody_else_may_read_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store, umask = SqliteStore(make_url(f"sqlite:///{path}")), os.umask(0o022)
    try:
        store.open()
        with store.transaction() as transaction:
            transaction.insert(record("a"))
        copy = store.copy()
        while not copy.step():
            pass
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(umask)
        store.close()
    assert {"store.db", "store.db-wal", "store.db.lock", copy.path.name} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database at all" * 1000)
    store = SqliteStore(make_url(f"sqlite:///{tmp_path / 'store.db'}"))
    with pytest.raises(StoreError, match="is no SQLite file, and stays as it is"):
        store.open()
    store.close()


def test_the_retention_clock_never_goes_back(store: Store) -> None:
    with store.transaction() as transaction:
        assert transaction.exchange_retention(5.0) == 5.0
        assert transaction.exchange_retention(3.0) == 5.0
    with store.transaction() as transaction:
        assert transaction.exchange_retention(7.5) == 7.5


def test_a_lease_from_before_the_clock_stepped_back_holds_no_longer(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.take_lease("g", "here:1", 4 * 3600.0, None)  # as it looks once the clock is 4 h back
    with store.transaction() as transaction:
        taken = transaction.take_lease("g", "there:2", 6.0, None)
        assert (taken.owner, taken.lease) == ("there:2", Lease("g", 2))


def test_the_oldest_snapshots_are_those_of_the_oldest_versions(store: Store) -> None:
    one = record("a")
    assert one.running is not None
    with store.transaction() as transaction:
        transaction.insert(one)
        for tag, version, created_at in (("old", 3, 100.0), ("new", 4, 50.0)):  # the clock stepped back between
            transaction.insert_snapshot(SnapshotHead("a", tag, version, 3.0, 2, created_at), one.spec, "")
        assert transaction.oldest_tags("a", 1) == ["old"]
