"""The wheel that `make dist` builds has all that a server, a client and the console need."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.install.pythons import ROOT
from tools import wheel

CONSOLE = ROOT / "server/normserver/console"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("dist"))


def test_it_has_the_console_the_migrations_and_the_types(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    assert {f"normserver/console/{one.relative_to(CONSOLE)}" for one in CONSOLE.rglob("*") if one.is_file()} <= names
    assert any(name.startswith("normserver/store/migrations/versions/") for name in names)
    assert {f"{package}/py.typed" for package in ("normcore", "normserver", "normstats")} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    assert wheel.missing(built) == []


def test_its_metadata_are_what_an_index_takes(built: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", built], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout


def test_a_file_that_is_missing_is_named(built: Path, tmp_path: Path) -> None:
    less = tmp_path / built.name
    with zipfile.ZipFile(built) as archive, zipfile.ZipFile(less, "w") as copy:
        for name in archive.namelist():
            if name != "normserver/console/main.js":
                copy.writestr(name, archive.read(name))
    assert wheel.missing(less) == ["normserver/console/main.js"]
