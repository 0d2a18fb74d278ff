"""The store's file is deleted, replaced or made read-only while the server works with it: nothing is acknowledged."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

import normstats
from tests.faults.conftest import Promise, Site
from tests.faults.load import wait_until
from tests.server_process import ServerProcess

ROW = [[1.0, 2.0, 3.0]]


@pytest.fixture
def server(sqlite: Site) -> ServerProcess:
    return sqlite.server().start()


def path_of(server: ServerProcess) -> Path:
    return Path(server.store.removeprefix("sqlite:///"))


def ready(server: ServerProcess) -> bool:
    return httpx.get(f"{server.http}/readyz").status_code == 200


def contribute(server: ServerProcess, times: int = 1) -> float:
    with normstats.connect(server.target, timeout=1.5) as client:
        obs = client.create("robot/obs", normstats.Standardize(3), exist_ok=True)
        for _ in range(times):
            obs.update(ROW)
        return float(obs.stats().count)


def _delete(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def _delete_alone(path: Path) -> None:
    path.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


def _move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved-away"))
    path.parent.mkdir()


@pytest.mark.parametrize("broken", [_delete, _delete_alone, _move, _replace, _move_folder])
def test_a_store_that_is_deleted_or_replaced_is_noticed(
    broken: Callable[[Path], None], tmp_path: Path, promise: Promise
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    server = ServerProcess(tmp_path, store=f"sqlite:///{folder / 'normstats.db'}").start()
    try:
        assert contribute(server) == 1
        path = path_of(server)
        broken(path)
        noticed = wait_until(lambda: not ready(server), 2.5)
        with pytest.raises(normstats.NormstatsError):
            contribute(server)
        assert not ready(server)
        assert "deleted or replaced" in server.log()
        assert server.terminate() == 0
    finally:
        server.stop()
    assert "Traceback" not in server.log()
    promise(f"The store underneath: {broken.__name__[1:]}", "noticed < 2 s, nothing acknowledged", f"{noticed:.2f} s")


def test_nothing_is_acknowledged_that_went_into_a_deleted_file(server: ServerProcess) -> None:
    """At once, without waiting for the check of each second."""
    assert contribute(server) == 1
    with normstats.connect(server.target, timeout=0.5) as client:
        obs = client.get("robot/obs")
        _delete(path_of(server))
        with pytest.raises(normstats.NormstatsError):
            obs.update(ROW)


def test_a_store_that_comes_back_is_used_again(server: ServerProcess) -> None:
    assert contribute(server, 3) == 3
    path = path_of(server)
    away = path.with_name("away")
    path.rename(away)
    wait_until(lambda: not ready(server), 2.5)
    away.rename(path)
    wait_until(lambda: ready(server), 5.0)
    assert contribute(server, 2) == 5
    server.kill()
    server.start()
    assert contribute(server, 1) == 6


def test_a_log_that_is_deleted_loses_nothing(server: ServerProcess) -> None:
    assert contribute(server, 5) == 5
    Path(f"{path_of(server)}-wal").unlink()
    wait_until(lambda: "was deleted or replaced" in server.log(), 2.5)
    wait_until(lambda: ready(server), 5.0)
    assert contribute(server, 1) == 6
    server.kill()
    server.start()
    assert contribute(server, 1) == 7


def test_a_file_system_that_becomes_read_only_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
        pytest.skip("mount: this user may not mount")
    server = ServerProcess(tmp_path, store=f"sqlite:///{folder / 'normstats.db'}")
    try:
        server.start()
        assert contribute(server) == 1
        remount = ["mount", "-o", "remount,ro,force", folder]
        if subprocess.run(remount, capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)
        wait_until(lambda: not ready(server), 2.5)
        with pytest.raises(normstats.NormstatsError):
            contribute(server)
    finally:
        server.stop()
        subprocess.run(["umount", "--lazy", folder], capture_output=True)


def test_a_new_store_is_announced_and_can_be_refused(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path).start()
    assert "the store is new and empty" in server.log()
    assert server.terminate() == 0
    before = server.log()
    server.flags = ("--store-must-exist",)
    server.start()
    assert server.log().removeprefix(before).count("the store is new and empty") == 0
    assert server.terminate() == 0
    _delete(path_of(server))
    with pytest.raises(RuntimeError, match=r"there is no store at .*normstats.db, and --store-must-exist"):
        server.start()
    assert not path_of(server).exists()


def test_another_database_under_the_server_is_refused(postgresql: Site) -> None:
    server = postgresql.server().start()
    assert contribute(server) == 1
    drop_tables(server.store)
    wait_until(lambda: not ready(server), 2.5)
    with pytest.raises(normstats.NormstatsError):
        contribute(server)
    other = postgresql.server().start()  # makes the tables of a new store
    time.sleep(2.5)
    assert not ready(server)
    with pytest.raises(normstats.NormstatsError):
        contribute(server)
    assert contribute(other) == 1
    assert other.terminate() == 0
    drop_tables(server.store)
    late = postgresql.server("--store-must-exist")
    with pytest.raises(RuntimeError, match="--store-must-exist"):
        late.start()


def drop_tables(url: str) -> None:
    """Drop whatever a server has made in a database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
