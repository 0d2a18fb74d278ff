"""Backups from the command line: made, verified, restored, and refused in a sentence."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import normstats
from normserver import upkeep
from normserver.app import open_store
from normserver.records import Record, start
from normstats import specs
from normstats.cli.app import cli
from tests.postgres import database
from tests.server_process import ServerProcess

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """normstats; fails unless the exit code is the expected one. What it would become is run in this process."""

    def become(executable: str, arguments: list[str]) -> None:
        assert arguments[:3] == [executable, "-m", "normserver.upkeep"]
        sys.exit(upkeep.main(arguments[3:]))

    monkeypatch.setattr(os, "execv", become)

    def invoke(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [*map(str, arguments)])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


def in_a_shell(*arguments: object) -> str:
    """What the command prints in a process of its own."""
    command = [sys.executable, "-c", "from normstats.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def store_of(path: Path, *names: str) -> str:
    """The URL of a store that has these normalizers, and that no server works on."""
    store = open_store(f"sqlite:///{path}")
    store.open()
    spec = specs.Standardize(2)
    with store.transaction() as transaction:
        for name in names:
            transaction.insert(Record(name, spec, 1, start(spec), False, 1.0, 1.0))
    store.close()
    return f"sqlite:///{path}"


def names_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM normalizers ORDER BY name")]


def spoil(path: Path, statement: str = "UPDATE normalizers SET version = -1") -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", ".log"))


def test_from_a_server_to_another_by_a_file(run: Run, own_server: ServerProcess, tmp_path: Path) -> None:
    own_server.start()
    with normstats.connect(own_server.target) as client:
        obs = client.create("robot/obs", specs.Standardize(2))
        obs.update(np.array([[1.0, 2.0], [3.0, 6.0]]))
        obs.snapshot("monday")
    file, elsewhere = tmp_path / "backup.db", tmp_path / "elsewhere.db"
    target = ("--target", own_server.target)
    told = json.loads(run(*target, "backup", file, "--json").stdout)
    assert told == {"file": str(file), "size_bytes": file.stat().st_size, "sha256": told["sha256"]}
    assert "is there already" in run(*target, "backup", file, code=1).stderr
    assert "bytes are in" in run(*target, "backup", file, "--force").stdout
    assert "1 normalizers, 1 snapshots, 1 producers; all sound" in in_a_shell("verify", file)
    own_server.stop()
    restored = in_a_shell("restore", "--backup", file, "--store", f"sqlite:///{elsewhere}")
    assert "1 normalizers, 1 snapshots, 1 producers; all sound" in restored
    other = ServerProcess(tmp_path, store=f"sqlite:///{elsewhere}").start()
    try:
        with normstats.connect(other.target) as client:
            found = client.get("robot/obs").stats()
            assert (found.version, found.count, found.mean.tolist()) == (2, 2, [2.0, 4.0])  # type: ignore[union-attr]
            assert [kept.tag for kept in client.get("robot/obs").snapshots()] == ["monday"]
    finally:
        other.stop()


def test_what_a_server_works_on_is_left_to_it(run: Run, own_server: ServerProcess, tmp_path: Path) -> None:
    own_server.start()
    backup = tmp_path / "backup.db"
    store_of(backup, "a")
    for arguments in (
        ("verify", "--store", own_server.store),
        ("verify", tmp_path / "normstats.db"),
        ("backup", tmp_path / "other.db", "--store", own_server.store),
        ("restore", "--backup", backup, "--store", own_server.store, "--force"),
        ("restore", "--backup", tmp_path / "normstats.db", "--store", f"sqlite:///{tmp_path / 'other.db'}"),
    ):
        assert "is held by process" in run(*arguments, code=1).stderr, arguments
    assert files_of(tmp_path) == ["backup.db", "normstats.db", "normstats.db-wal"]
    with normstats.connect(own_server.target) as client:
        client.create("still/there", specs.Standardize(1))


def test_a_store_that_no_server_works_on_is_backed_up_as_a_killed_one_left_it(
    run: Run, own_server: ServerProcess, tmp_path: Path
) -> None:
    own_server.start()
    with normstats.connect(own_server.target) as client:
        client.create("in/the/log", specs.Standardize(1))
    own_server.kill()
    assert (tmp_path / "normstats.db-wal").stat().st_size > 0
    backup = tmp_path / "backup.db"
    told = json.loads(run("backup", backup, "--store", own_server.store, "--json").stdout)
    assert told["size_bytes"] == backup.stat().st_size
    assert names_in(backup) == ["in/the/log"]
    assert "is there already" in run("backup", backup, "--store", own_server.store, code=1).stderr
    assert files_of(tmp_path) == ["backup.db", "normstats.db"]


def test_verify_tells_each_violation_and_a_summary(run: Run, tmp_path: Path) -> None:
    url = store_of(tmp_path / "store.db", "a", "b")
    assert run("verify", "--store", url).stdout.endswith("2 normalizers, 0 snapshots, 0 producers; all sound\n")
    spoil(tmp_path / "store.db")
    lines = run("verify", "--store", url, code=1).stdout.splitlines()
    assert lines == [
        "normalizer a: version is -1; expected an integer, at least 1",
        "normalizer b: version is -1; expected an integer, at least 1",
        f"{url}: 2 normalizers, 0 snapshots, 0 producers; 2 violations",
    ]
    first, _, summary = map(json.loads, run("--json", "verify", "--store", url, code=1).stdout.splitlines())
    assert (first["kind"], first["name"], first["field"], first["feature"]) == ("normalizer", "a", "version", None)
    assert summary == {"schema": "0001", "normalizers": 2, "snapshots": 0, "producers": 0, "violations": 2}


def test_verify_takes_the_store_that_serve_would(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMSTATS_STORE", store_of(tmp_path / "store.db", "a"))
    assert "1 normalizers" in run("verify").stdout
    monkeypatch.delenv("NORMSTATS_STORE")
    monkeypatch.chdir(tmp_path)
    assert "there is no file" in run("verify", code=1).stderr
    store_of(tmp_path / "normstats.db", "a", "b")
    assert "2 normalizers" in run("verify").stdout


def test_postgresql_is_verified_and_has_its_own_backups(run: Run, tmp_path: Path) -> None:
    with database() as url:
        store = open_store(url)
        store.open()
        store.close()
        assert "0 normalizers" in run("verify", "--store", url).stdout
        for arguments in (("backup", tmp_path / "b"), ("restore", "--backup", tmp_path / "b")):
            assert "pg_dump" in run(*arguments, "--store", url, code=1).stderr
    assert "does not exist" in run("verify", "--store", url, code=1).stderr


@pytest.mark.parametrize("how", ["truncated", "overwritten", "violations", "no database", "missing"])
def test_what_is_not_sound_is_not_restored(run: Run, tmp_path: Path, how: str) -> None:
    backup, target = tmp_path / "backup.db", tmp_path / "store.db"
    store_of(backup, *(f"many/{number}" for number in range(200)))
    data = backup.read_bytes()
    if how == "truncated":
        backup.write_bytes(data[: len(data) // 2])
    elif how == "overwritten":
        backup.write_bytes(data[:8192] + bytes(8192) + data[16384:])
    elif how == "violations":
        spoil(backup)
    elif how == "no database":
        backup.write_bytes(b"no database" * 1000)
    else:
        backup.unlink()
    verified = run("verify", backup, code=1)
    assert ("violations" in verified.stdout) == (how != "missing")
    url = store_of(target, "mine")
    refused = run("restore", "--backup", backup, "--store", url, "--force", code=1).stderr
    assert ("there is no file" if how == "missing" else "is not sound, and not restored") in refused
    assert names_in(target) == ["mine"]
    assert not (tmp_path / "store.db.before-restore").exists()


def test_a_trigger_in_a_backup_is_not_restored(run: Run, tmp_path: Path) -> None:
    backup, store = tmp_path / "backup.db", tmp_path / "store.db"
    store_of(backup, "a")
    with closing(sqlite3.connect(backup)) as connection, connection:
        connection.execute("CREATE TRIGGER evil AFTER UPDATE ON normalizers BEGIN DELETE FROM producers; END")
    told = run("restore", "--backup", backup, "--store", f"sqlite:///{store}", code=1).stderr
    assert "is not sound, and not restored" in told
    assert "schema has a trigger 'evil'; expected none of that name" in told
    assert not store.exists()


def test_a_store_is_replaced_only_if_it_is_forced_and_kept_beside(run: Run, tmp_path: Path) -> None:
    backup, target = tmp_path / "backup.db", tmp_path / "store.db"
    store_of(backup, "new")
    url = store_of(target, "old/a", "old/b")
    refused = run("restore", "--backup", backup, "--store", url, code=1).stderr
    assert f"{target} is there, with 2 normalizers; --force keeps it as {target}.before-restore" in refused
    assert names_in(target) == ["old/a", "old/b"]
    told = json.loads(run("restore", "--backup", backup, "--store", url, "--force", "--json").stdout)
    assert told == {"store": str(target), "normalizers": 1, "kept_as": f"{target}.before-restore"}
    assert names_in(target) == ["new"]
    assert names_in(Path(f"{target}.before-restore")) == ["old/a", "old/b"]
    again = run("restore", "--backup", backup, "--store", url, "--force", code=1).stderr
    assert "is there from an earlier restore" in again
    assert files_of(tmp_path) == ["backup.db", "store.db", "store.db.before-restore"]


def test_the_log_of_the_store_that_was_there_does_not_become_the_new_ones(
    run: Run, own_server: ServerProcess, tmp_path: Path
) -> None:
    """SQLite would take the log for the restored file's own, and write its pages over it."""
    own_server.start()
    with normstats.connect(own_server.target) as client:
        client.create("old", specs.Standardize(1))
    own_server.kill()
    log, backup, target = tmp_path / "normstats.db-wal", tmp_path / "backup.db", tmp_path / "normstats.db"
    kept = log.read_bytes()
    assert kept
    store_of(backup, "new")
    run("restore", "--backup", backup, "--store", own_server.store, "--force")
    assert names_in(Path(f"{target}.before-restore")) == ["old"], "what only the log had is kept too"
    target.unlink()
    log.write_bytes(kept)
    run("restore", "--backup", backup, "--store", own_server.store)
    assert not log.exists()
    own_server.start()
    with normstats.connect(own_server.target) as client:
        assert [info.name for info in client.list()] == ["new"]


def test_a_store_that_cannot_be_read_is_replaced_too(run: Run, tmp_path: Path) -> None:
    backup, target = tmp_path / "backup.db", tmp_path / "store.db"
    store_of(backup, "new")
    target.write_text("no database")
    url = f"sqlite:///{target}"
    assert "something that cannot be read" in run("restore", "--backup", backup, "--store", url, code=1).stderr
    run("restore", "--backup", backup, "--store", url, "--force")
    assert names_in(target) == ["new"]
    assert Path(f"{target}.before-restore").read_text() == "no database"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("restore",), "give NAME TAG, or --backup FILE --store URL"),
        (("restore", "name"), "give NAME TAG, or --backup FILE --store URL"),
        (("restore", "--backup", "file"), "give NAME TAG, or --backup FILE --store URL"),
        (("restore", "--store", "sqlite:///a.db"), "give NAME TAG, or --backup FILE --store URL"),
        (("restore", "name", "tag", "--backup", "file"), "give one of the two"),
        (("restore", "name", "tag", "--force"), "give one of the two"),
        (("verify", "file", "--store", "sqlite:///a.db"), "give FILE or --store, not both"),
        (("backup",), "Missing argument 'FILE'"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in run(*arguments, code=2).stderr


@pytest.mark.parametrize("store", ["mysql://host/a", "no url", "sqlite://"])
def test_a_store_of_no_kind_is_told(run: Run, store: str, tmp_path: Path) -> None:
    for arguments in (("verify",), ("backup", tmp_path / "b"), ("restore", "--backup", tmp_path / "b")):
        told: Any = json.loads(run(*arguments, "--store", store, "--json", code=1).stderr)
        assert told["error"]["code"] == "FAILED_PRECONDITION"
