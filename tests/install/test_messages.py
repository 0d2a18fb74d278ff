"""An installation that cannot succeed ends with a sentence: what was found and what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.install.index import Index, wheel
from tests.install.pythons import environment, python, run
from tools import install

pytestmark = pytest.mark.timeout(600)  # virtual environments are made, on a machine that runs other tests

MANAGED = sorted(Path("/usr/lib").glob("python3.*/EXTERNALLY-MANAGED"))


@pytest.fixture
def systems_own() -> str:
    """The Python of the operating system."""
    if not MANAGED:
        pytest.skip("no Python here is managed by the operating system (PEP 668)")
    return f"/usr/bin/{MANAGED[-1].parent.name}"


def test_a_python_of_the_operating_system_is_refused_before_pip_refuses(systems_own: str) -> None:
    told = run("make", "install", f"PYTHON={systems_own}")
    assert told.returncode != 0
    assert f"normstats: {systems_own} belongs to the operating system" in told.stderr
    assert "python3 -m venv" in told.stderr
    assert "externally-managed-environment" not in told.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
def test_a_python_without_venv_is_refused(systems_own: str, tmp_path: Path) -> None:
    """As Debian's is until python3-venv is installed: that package is what has ensurepip."""
    ensurepip = MANAGED[-1].parent / "ensurepip"
    if not ensurepip.exists() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("there is no ensurepip to hide, or unshare may not make namespaces here")
    (tmp_path / "nothing").mkdir()
    venv, hide = tmp_path / "venv", f'mount --bind {tmp_path / "nothing"} {ensurepip} && exec "$@"'
    setup = ["make", "setup", f"PYTHON={systems_own}", f"VENV={venv}"]
    told = run("unshare", "--mount", "sh", "-c", hide, "-", *setup)
    assert told.returncode != 0
    (sentence,) = (line for line in told.stderr.splitlines() if not line.startswith("make: "))
    assert sentence.startswith(f"normstats: {systems_own} cannot make a virtual environment, as it has no ensurepip")
    assert "apt install python3-venv" in sentence
    assert not venv.exists()


def test_a_python_for_which_nothing_is_pinned_is_refused(tmp_path: Path) -> None:
    told = run("make", "setup", f"PYTHON={python('3.10')}", f"VENV={tmp_path / 'venv'}")
    assert told.returncode != 0
    assert "is Python 3.10; normstats is pinned for Python 3.11 to 3.14" in told.stderr
    assert not (tmp_path / "venv").exists()


def test_another_build_of_torch_is_refused() -> None:
    told = run(sys.executable, "tools/install.py", "constraints.txt", TORCH="gpu")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("normstats: TORCH=gpu: expected TORCH=cpu or TORCH=cuda")


def test_where_there_is_no_cpu_build_nothing_else_is_fetched(index: Index, tmp_path: Path) -> None:
    page = shutil.copytree(index.folder / "torch", tmp_path / "simple/torch") / "index.html"
    page.write_text("\n".join(line for line in page.read_text().splitlines() if "+cpu" not in line))
    made = environment(tmp_path / "venv", "3.11")
    url = (tmp_path / "simple").as_uri()
    settings = {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "TORCH": "cpu"}
    told = run(made, index.copy / "tools/install.py", "--pins-only", "constraints-server.txt", **settings)
    assert told.returncode == 1
    sentence = told.stderr.splitlines()[-1]
    assert sentence.startswith("normstats: torch's CPU build could not be installed, for the reason above")
    assert "PIP_EXTRA_INDEX_URL" in sentence
    installed = run(made, "-m", "pip", "list", "--format", "freeze").stdout
    assert "torch" not in installed
    assert "nvidia" not in installed


def test_the_build_is_that_for_the_machine_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.torch_build() == "cpu"
    (tmp_path / "nvidia-smi").touch(0o755)
    assert install.torch_build() == "cuda"
    monkeypatch.setenv("TORCH", "cpu")
    assert install.torch_build() == "cpu"


def test_packages_of_others_that_do_not_fit_are_named(index: Index, tmp_path: Path) -> None:
    lock = tmp_path / "one.txt"
    (pin,) = re.findall(r"^click==.+", (index.copy / "constraints.txt").read_text(), re.MULTILINE)
    lock.write_text(pin)
    made = environment(tmp_path / "venv", "3.11")
    theirs = wheel(tmp_path, "theirs", "1.0", ["Requires-Dist: click<1"])
    assert run(made, "-m", "pip", "install", "--no-deps", theirs).returncode == 0
    settings = {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull, "TORCH": "cpu"}
    told = run(made, index.copy / "tools/install.py", "--pins-only", lock, **settings)
    assert told.returncode == 1
    assert told.stderr.startswith(
        f"normstats: {lock} is installed, and does not fit with other packages of this Python"
    )
    assert "theirs 1.0 has requirement click<1, but you have click" in told.stderr
    assert "python3 -m venv" in told.stderr.splitlines()[-1]
