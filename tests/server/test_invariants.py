"""Whatever a store should not hold is found, and nothing else."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.engine import make_url

from normcore.moments import moments_of
from normcore.running import Running
from normserver import invariants
from normserver.app import open_store
from normserver.producers import Producer, Verdict, Window
from normserver.records import Record, SnapshotHead, policy_of, start
from normserver.store.reading import postgresql, sqlite_file
from normserver.store.verifying import verify
from normstats import specs
from normstats.v1 import resources_pb2 as pb
from tests.postgres import database

Change = Callable[[pb.RunningState], None]
PRODUCER = Producer("anyone", bytes(range(16)))
SPECS: dict[str, specs.Spec] = {
    "a": specs.Standardize(3),
    "by/batch": specs.BatchNorm(3, weight=[1, 2, 3]),
    "by/ema": specs.BatchNorm(3, momentum=0.1),
    "by/time": specs.Standardize(3, half_life=60),
    "seeded": specs.BatchNorm(3, running_mean=[1, 2, 3], running_var=[1, 1, 1]),
    "none": specs.LayerNorm(4),
    "nothing/seen": specs.Standardize(3),
    "wide": specs.Standardize(4),
}


def fill(url: str) -> None:
    """A store of one normalizer of each kind, a snapshot of "a" and a producer."""
    store = open_store(url)
    store.open()
    x = torch.tensor([[1.0, 1e8, -3.0], [2.0, 1e8 + 1 / 3, -3.0], [4.0, 1e8 + 2, -3.0]], dtype=torch.float64)
    with store.transaction() as transaction:
        for name, spec in SPECS.items():
            running = start(spec)
            if name == "wide" and running is not None:
                running = Running(running.moments, torch.zeros(4, dtype=torch.float64))
            elif name != "nothing/seen" and running is not None:
                policy = policy_of(spec)  # type: ignore[arg-type]
                running = policy.compose(running, policy.of(moments_of(x, 1), 1700000000.0))
            transaction.insert(Record(name, spec, 2, running, False, 1.25, 1700000000.123457))
        head = transaction.heads(["a"])["a"]
        kept = SnapshotHead("a", "monday", 2, head.num_rows, head.num_batches, 1.5)
        transaction.insert_snapshot(kept, head.spec, "anyone")
        transaction.put_windows({PRODUCER: Window().add(1).add(3)}, 1.0)
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(f"sqlite:///{tmp_path / 'store.db'}")
    return tmp_path / "store.db"


def told(path: Path) -> list[str]:
    with sqlite_file(path) as connection:
        return [str(violation) for violation in verify(connection).violations]


def test_what_a_server_writes_is_sound(path: Path) -> None:
    with sqlite_file(path) as connection:
        report = verify(connection)
    assert report.violations == []
    assert (report.schema, report.normalizers, report.snapshots, report.producers) == ("0001", 8, 1, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("version = -1", "version is -1; expected an integer, at least 1"),
        ("version = 'x'", "version is 'x'; expected an integer, at least 1"),
        ("updated_at = 9e999", "time is inf; expected seconds, finite"),
        ("spec = x'ff'", "spec cannot be read: "),
        ("spec = x''", "spec cannot be read: kind is not given"),
        ("spec = 'text'", "spec cannot be read: "),
        ("num_rows = 4", "num_rows is 4.0; expected 3.0, as its statistics"),
        ("num_batches = 0", "num_batches is 0; expected 1, as its statistics"),
        ("parameters = x'ff'", "parameters cannot be read: "),
        (
            "parameters = (SELECT spec FROM normalizers WHERE name = 'by/time')",
            "parameters are of another Standardize; expected those of the spec",
        ),
    ],
)  # fmt: skip
def test_what_sql_did_to_a_normalizer_is_found(path: Path, change: str, expected: str) -> None:
    violation = the_one_after(path, f"UPDATE normalizers SET {change} WHERE name = 'by/ema'")
    assert violation.startswith(f"normalizer by/ema: {expected}")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE normalizers SET name = 'no/' WHERE name = 'none'", "name is 'no/'; expected 1 to 200 letters"),
        (
            "INSERT INTO statistics SELECT 'none', '', 0, running, checksum FROM statistics WHERE normalizer = 'wide'",
            "normalizer none: running is there; expected none of LayerNorm",
        ),
        (
            "INSERT INTO statistics SELECT 'nobody', '', 0, running, checksum FROM statistics "
            "WHERE normalizer = 'wide'",
            "normalizer nobody: running is there; expected a normalizer or snapshot that it belongs to",
        ),
        (
            "DELETE FROM statistics WHERE normalizer = 'by/ema'",
            "normalizer by/ema: running is missing from feature 0 on; expected 3 features",
        ),
        (
            "UPDATE statistics SET start = 1 WHERE normalizer = 'by/ema'",
            "normalizer by/ema: running has a piece at 1; expected one at 0 of 3",
        ),
        ("UPDATE statistics SET running = x'ff' WHERE normalizer = 'by/ema'", "by/ema: running cannot be read: "),
        (
            "UPDATE statistics SET running = x'' WHERE normalizer = 'by/ema'",
            "by/ema: running.count has 0 bytes; expected 8 or 24 (float64)",
        ),
        (
            "UPDATE statistics SET running = (SELECT running FROM statistics WHERE normalizer = 'wide') "
            "WHERE normalizer = 'by/ema'",
            "by/ema: running.count has 32 bytes; expected 8",
        ),
        ("UPDATE snapshots SET version = 3", "a@monday: version is 3; expected at most its normalizer's, 2"),
        ("UPDATE snapshots SET version = 0", "a@monday: version is 0; expected an integer, at least 1"),
        (
            "INSERT INTO snapshots SELECT 'a', 'a b', 1, 0, 0, created_at, '', 0, 0 FROM snapshots",
            "a@a b: tag is 'a b'; expected 1 to 100 letters",
        ),
        ("UPDATE statistics SET running = x'00' WHERE tag = 'monday'", "a@monday: running cannot be read"),
        ("DELETE FROM snapshots", "a@monday: running is there; expected a normalizer or snapshot that it belongs to"),
        (
            "INSERT INTO snapshots SELECT 'b', tag, version, 0, 0, created_at, '', 0, 0 FROM snapshots",
            "b@monday: normalizer is 'b'; expected one that there is",
        ),
        ("UPDATE producers SET highest = -1", "highest is -1; expected a sequence, at least 0"),
        ("UPDATE producers SET highest = 0", "seen has bit 0 set, which stands for 0"),
        ("UPDATE producers SET highest = 2", "seen has bit 2; expected none of sequences below 1"),
        ("UPDATE producers SET seen = x'01'", "seen has 1 bytes; expected 128"),
        ("UPDATE producers SET seen = zeroblob(128)", "seen has bit 0 clear, which stands for 3"),
        ("UPDATE producers SET producer_id = x'0102'", "producer anyone 0102: producer_id has 2 bytes; expected 16"),
        ("UPDATE alembic_version SET version_num = '0099'", "database itself: schema is 0099; expected 0001"),
        ("DROP TABLE alembic_version", "database itself: schema is missing; expected a store of normstats"),
        ("DROP TABLE snapshots", "database itself: schema has no table 'snapshots'"),
        ("DROP INDEX ix_producers_used_at", "database itself: schema has no index 'ix_producers_used_at'"),
        ("CREATE TABLE extra (x)", "database itself: schema has a table 'extra'; expected none of that name"),
        ("CREATE VIEW extra AS SELECT 1", "database itself: schema has a view 'extra'; expected none of that name"),
        (
            "CREATE TRIGGER evil AFTER UPDATE ON statistics BEGIN DELETE FROM producers; END",
            "database itself: schema has a trigger 'evil'; expected none of that name",
        ),
        ("ALTER TABLE leases ADD COLUMN extra TEXT", "database itself: schema has a table 'leases' that was changed"),
        ("UPDATE producers SET used_at = 2", "producer anyone 000102030405060708090a0b0c0d0e0f: checksum is "),
    ],
)  # fmt: skip
def test_what_sql_did_to_the_rest_is_found(path: Path, statement: str, expected: str) -> None:
    assert expected in the_one_after(path, statement)


def the_one_after(path: Path, statement: str) -> str:
    """The one violation after a statement that changes a row, or a table."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement).rowcount in (1, -1)
    (violation,) = told(path)
    return violation


def set_field(path: str, value: object) -> Change:
    def change(message: pb.RunningState) -> None:
        *parents, field = path.split(".")
        setattr(message.moments if parents else message, field, value)

    return change


def set_value(field: str, feature: int, value: float) -> Change:
    def change(message: pb.RunningState) -> None:
        data = bytearray(getattr(message.moments, field))
        struct.pack_into("<d", data, 8 * feature, value)
        setattr(message.moments, field, bytes(data))

    return change


def both(*changes: Change) -> Change:
    def change(message: pb.RunningState) -> None:
        for one in changes:
            one(message)

    return change


def changed(path: Path, change: Change, tag: str = "") -> None:
    """Change the statistics of "a", or of its snapshot."""
    with closing(sqlite3.connect(path)) as connection, connection:
        ((data,),) = connection.execute("SELECT running FROM statistics WHERE normalizer = 'a' AND tag = ?", [tag])
        message = pb.RunningState.FromString(data)
        change(message)
        update = "UPDATE statistics SET running = ? WHERE normalizer = 'a' AND tag = ?"
        connection.execute(update, [message.SerializeToString(), tag])


NAN, INF = float("nan"), float("inf")
AND_ONE, AND_TWO = "; 1 more features likewise", "; 2 more features likewise"


@pytest.mark.parametrize("kind", ["normalizer a", "snapshot a@monday"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_value("count", 0, -1.0), "moments.count[0] is -1.0; expected finite and at least 0" + AND_TWO),
        (set_value("m2", 1, -0.5), "moments.m2[1] is -0.5; expected at least 0"),
        (set_value("mean", 2, NAN), "moments.mean[2] is nan; expected finite"),
        (both(set_value("max", 0, INF), set_value("max", 2, INF)), "moments.max[0] is inf; expected finite" + AND_ONE),
        (set_value("mean", 0, 9.0), "moments.mean[0] is 9.0; expected at most max"),
        (set_value("mean", 0, 0.5), "moments.mean[0] is 0.5; expected at least min"),
        (set_value("min", 0, 5.0), "moments.max[0] is 4.0; expected at least min"),
        (set_value("mean_low", 0, 1.0), "moments.mean_low[0] is 1.0; expected less than half an ulp of mean"),
        (set_value("m2", 0, INF), "moments.m2[0] is inf; expected finite"),
        (set_field("count", struct.pack("<d", -2.0)), "count[0] is -2.0; expected finite and at least 0" + AND_TWO),
        (set_field("num_batches", -1), "running.num_batches is -1; expected at least 0"),
        (set_field("moments.min", bytes(7)), "running.moments.min has 7 bytes; expected 24 (float64)"),
    ],
)  # fmt: skip
def test_statistics_that_nothing_could_have_are_found(path: Path, kind: str, change: Change, expected: str) -> None:
    changed(path, change, kind.partition("@")[2])
    assert told(path) == [f"{kind}: {expected}"]


@pytest.mark.parametrize("kind", ["normalizer a", "snapshot a@monday"])
def test_a_bit_that_flipped_is_found_where_the_value_could_be(path: Path, kind: str) -> None:
    def flip(message: pb.RunningState) -> None:
        data = bytearray(message.moments.m2)
        data[0] ^= 1
        message.moments.m2 = bytes(data)

    changed(path, flip, kind.partition("@")[2])
    (violation,) = told(path)
    assert violation.startswith(f"{kind}: running has the checksum ")
    assert violation.endswith(": bits have changed")


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("UPDATE normalizers SET version = version + 1 WHERE name = 'by/ema'", "normalizer by/ema"),
        ("UPDATE normalizers SET frozen = NOT frozen WHERE name = 'none'", "normalizer none"),
        ("UPDATE normalizers SET creator = 'anyome' WHERE name = 'by/ema'", "normalizer by/ema"),
        (
            "UPDATE normalizers SET spec = (SELECT spec FROM normalizers WHERE name = 'by/time') WHERE name = 'by/ema'",
            "normalizer by/ema",
        ),
        ("UPDATE snapshots SET created_at = created_at + 1", "snapshot a@monday"),
        ("UPDATE producers SET highest = highest + 2", "producer anyone 000102030405060708090a0b0c0d0e0f"),
    ],
)
def test_a_row_that_says_something_else_than_was_written_is_found(path: Path, statement: str, subject: str) -> None:
    expected = f"{subject}: checksum is not that of the row: bits have changed since it was written"
    assert the_one_after(path, statement) == expected


def test_each_broken_feature_is_told_once_by_the_first_rule_that_it_breaks(path: Path) -> None:
    changed(path, both(set_value("mean", 0, NAN), set_value("m2", 0, -1.0), set_value("m2", 1, -2.0)))
    assert told(path) == [
        "normalizer a: moments.mean[0] is nan; expected finite",
        "normalizer a: moments.m2[1] is -2.0; expected at least 0",
    ]


def test_broken_pages_are_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    assert any(line.startswith("database itself: ") for line in told(path)), "truncated"
    for page in range(4096, len(data), 4096):
        data[page : page + 100] = bytes(100)
    path.write_bytes(data)
    assert any(line.startswith("database itself: ") for line in told(path)), "overwritten"
    path.write_bytes(b"no database at all" * 1000)
    assert told(path) == ["database itself: file cannot be read: file is not a database"]


def test_what_a_killed_server_left_in_its_log_is_verified_too(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            connection.execute("UPDATE normalizers SET version = -1 WHERE name = 'none'")
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    assert [line.partition(";")[0] for line in told(copy)] == ["normalizer none: version is -1"]


def test_verifying_changes_no_byte_and_leaves_no_file(path: Path) -> None:
    before = path.read_bytes(), sorted(path.parent.iterdir())
    assert told(path) == []
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


def test_a_postgresql_store_is_verified_likewise() -> None:
    with database() as url:
        fill(url)
        with postgresql(make_url(url)) as connection:
            report = verify(connection)
        assert (report.violations, report.normalizers, report.snapshots, report.producers) == ([], 8, 1, 1)
        store = open_store(url)
        store.open()
        with store.transaction() as transaction:
            transaction._connection.execute(text("UPDATE normalizers SET version = 0, updated_at = 'NaN'"))  # type: ignore[attr-defined]
        store.close()
        with postgresql(make_url(url)) as connection:
            found = verify(connection).violations
    for field, sentence in (
        ("version", "is 0; expected an integer, at least 1"),
        ("time", "is nan; expected seconds, finite"),
    ):
        assert [one[1:4] for one in found if one[::2] == ("normalizer", field, None)] == [
            (name, field, sentence) for name in sorted(SPECS)
        ]


@given(st.lists(st.integers(1, 5000), max_size=50))
def test_a_window_that_sequences_lead_to_is_sound(sequences: list[int]) -> None:
    window = Window()
    for sequence in sequences:
        if window.verdict(sequence) is Verdict.NEW:
            window = window.add(sequence)
    assert list(invariants.of_window(*PRODUCER, window.highest, window.to_bytes(), 1.0)) == []


@given(st.integers(0, 2000), st.integers(0, 2**1024 - 1))
def test_a_window_is_sound_if_and_only_if_sequences_lead_to_it(highest: int, seen: int) -> None:
    reachable = Window()
    for sequence in sorted(highest - bit for bit in range(1024) if seen >> bit & 1):
        if sequence >= 1:
            reachable = reachable.add(sequence)
    sound = not list(invariants.of_window(*PRODUCER, highest, seen.to_bytes(128, "little"), 1.0))
    assert sound == (reachable == Window(highest, seen))
