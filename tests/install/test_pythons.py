"""On every Python that is named the lock installs, and the wheel imports, serves and answers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.install.pythons import ROOT, environment, run
from tools import wheel

SESSION = """
import sys
import numpy as np
import normstats

client = normstats.connect(sys.argv[1], timeout=120)
normalizer = client.create("robot/obs", normstats.Standardize(2))
normalizer.update(np.array([[1.0, 2.0], [3.0, 6.0]]))
print(normalizer.stats().mean, normalizer.normalize(np.array([[2.0, 4.0]])))
print(client.normalize(np.array([[1.0, 3.0]], np.float32), normstats.LayerNorm(2)))
"""


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_it_installs_imports_and_serves(version: str, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", version)
    try:
        _install(python, tmp_path)
        server = subprocess.Popen(
            [Path(python).with_name("normstats"), "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr is not None
            (target,) = next(filter(None, (re.findall(r'"grpc": "([^"]+)"', line) for line in server.stderr)))
            answered = run(python, "-c", SESSION, target)
            assert answered.returncode == 0, answered.stderr
            assert answered.stdout.split("\n") == ["[2. 4.] [[0. 0.]]", "[[-0.999995  0.999995]]", ""]
        finally:
            server.terminate()
        assert server.wait(60) == 0
    finally:
        shutil.rmtree(tmp_path / "venv")


def _install(python: str, folder: Path) -> None:
    """Install the lock with torch's CPU build, or where that is not in reach with PyPI's; then the wheel."""
    command = [python, ROOT / "tools/install.py", "--pins-only", "constraints-server.txt"]
    told = run(*command, TORCH="cpu")
    if told.returncode:
        assert "torch's CPU build could not be installed" in told.stderr
        told = run(*command, TORCH="cuda", PIP_NO_CACHE_DIR="1")
    assert told.returncode == 0, told.stderr
    told = run(python, "-m", "pip", "install", "--no-deps", wheel.build(folder))
    assert told.returncode == 0, told.stderr
    told = run(python, "-m", "pip", "check")
    assert told.returncode == 0, told.stdout
