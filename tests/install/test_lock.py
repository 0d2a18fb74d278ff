"""The lock is complete: it is installed as it is, whatever was released after it, by the pip of each Python."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.install.index import LATER, Index, expected
from tests.install.pythons import ROOT, environment, run
from tools import install
from tools import lock as locking

pytestmark = pytest.mark.timeout(600)  # virtual environments are made, on a machine that runs other tests

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MARKERS = "import json; from pip._vendor.packaging.markers import default_environment as e; print(json.dumps(e()))"
ALL, SERVER = "constraints.txt", "constraints-server.txt"


@pytest.mark.parametrize(
    ("version", "newest_pip", "lock", "torch"),
    [
        ("3.11", False, ALL, "cpu"),
        ("3.11", True, SERVER, "cuda"),
        ("3.12", False, SERVER, "cpu"),
        ("3.13", True, SERVER, "cpu"),
        ("3.14", False, SERVER, "cpu"),
    ],
)
def test_what_is_pinned_is_installed_although_everything_has_a_newer_release(
    version: str, newest_pip: bool, lock: str, torch: str, index: Index, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv", version, newest_pip)
    of_pip = _installed(python)
    settings = {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull, "TORCH": torch}
    installed = run(python, index.copy / "tools/install.py", "--pins-only", lock, **settings)
    assert installed.returncode == 0, installed.stderr
    markers = json.loads(run(python, "-c", MARKERS).stdout)
    torch_lock = {"cpu": "constraints-torch-cpu.txt", "cuda": "constraints-torch.txt"}[torch]
    wanted = expected(ROOT / lock, markers) | expected(ROOT / torch_lock, markers)
    found = {name: version for name, version in _installed(python).items() if name not in of_pip or name in wanted}
    assert found == wanted
    assert LATER not in found.values()


def _installed(python: str) -> dict[str, str]:
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json").stdout)
    return {re.sub("[-_.]+", "-", one["name"]).lower(): one["version"] for one in listed}


def test_make_and_the_images_install_by_this_alone() -> None:
    for target in ("setup", "install"):
        told = run("make", "-n", "-B", target)
        (line,) = (line for line in told.stdout.splitlines() if not line.startswith("touch "))
        assert re.fullmatch(r"\S+ tools/install\.py [^|&;]+", line)
    for file in ("Makefile", "deploy/Dockerfile"):
        for line in (ROOT / file).read_text().replace("\\\n", " ").splitlines():
            assert "pip install" not in line or "--no-deps" in line, line


def test_the_pythons_that_are_named_are_those_that_are_pinned() -> None:
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert named == list(install.PYTHONS)
    assert PROJECT["requires-python"] == f">={install.PYTHONS[0]}"


@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_36", "aarch64-manylinux_2_36"])
@pytest.mark.parametrize("lock", [ALL, SERVER, "constraints-torch.txt"])
def test_every_pin_has_a_wheel_for_every_python_that_is_named(lock: str, platform: str, tmp_path: Path) -> None:
    for version in install.PYTHONS:
        command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--target", str(tmp_path)]
        command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", lock]
        command += ["--python-version", version, "--python-platform", platform]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if "Failed to fetch" in told.stderr or "error sending request" in told.stderr:
            pytest.skip("PyPI is not in reach")
        assert told.returncode == 0, (version, told.stderr)


@pytest.fixture
def pytorch_index(tmp_path: Path) -> Iterator[str]:
    """The URL of an index whose page is as that of https://download.pytorch.org/whl/cpu."""
    (tmp_path / "whl/cpu/torch").mkdir(parents=True)
    files = {
        "2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64": "a",
        "2.13.0%2Bcpu-cp312-win_amd64": "b",
        "2.1-linux": "c",
    }
    links = (f'<a href="/whl/cpu/torch-{name}.whl#sha256={digit * 64}">x</a><br/>' for name, digit in files.items())
    (tmp_path / "whl/cpu/torch/index.html").write_text("\n".join(links))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
        server.shutdown()
        thread.join()


def test_the_cpu_build_is_pinned_by_what_was_known_an_index_and_a_folder(pytorch_index: str, tmp_path: Path) -> None:
    known = locking.hashes(locking.CPU.read_text().partition("+cpu")[2])
    assert len(known) == 2 * len(install.PYTHONS), "x86-64 and aarch64"
    assert locking.cpu_hashes("2.13.0", pytorch_index) == known | {"a" * 64}
    wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    wheel.touch()
    of_nothing = hashlib.sha256(b"").hexdigest()
    assert locking.cpu_hashes("2.13.0", str(tmp_path)) == known | {of_nothing}
    assert locking.cpu_hashes("9.0.0", str(tmp_path)) == set()
    pypi, cpu = locking.builds(f"torch==9.0.0{locking.HASH}sha256:{'d' * 64}", str(tmp_path))
    assert pypi == f"torch==9.0.0{locking.HASH}sha256:{'d' * 64}"
    assert cpu.startswith(f"torch==9.0.0 ; sys_platform != 'linux'{locking.HASH}sha256:{'d' * 64}\ntorch==9.0.0+cpu ; ")
