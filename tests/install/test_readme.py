"""What the README says about installing is what there is to install."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.install.pythons import ROOT, run
from tools.install import PYTHONS, TORCH

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = README.split("\n## Install\n")[1].split("\n## ")[0]


def test_it_begins_with_two_commands_that_do_all_that_they_need() -> None:
    first, *_ = re.findall(r"^```\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    assert first.splitlines() == ["make demo", "make test"]
    for command in first.splitlines():
        told = run(*command.split(), "-n", "-B")
        assert "tools/install.py --venv" in told.stdout.splitlines()[0]


def test_the_wheel_that_it_installs_is_the_one_that_is_built() -> None:
    wheels = re.findall(r"'dist/([^'\[]+)\[(\w+)\]'", INSTALL)
    assert len(wheels) == 3
    for wheel, extra in wheels:
        assert wheel == f"normstats-{PROJECT['version']}-py3-none-any.whl"
        assert extra in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("extra", re.findall(r"^\| `(\w+)`", INSTALL, re.MULTILINE))
def test_the_extras_that_it_names_are_there(extra: str) -> None:
    assert extra in PROJECT["optional-dependencies"]


def test_it_names_the_pythons_and_the_builds_of_torch() -> None:
    assert f"{', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}" in README
    assert {f"TORCH={build}" for build in TORCH} <= set(re.findall(r"TORCH=\w+", INSTALL))
