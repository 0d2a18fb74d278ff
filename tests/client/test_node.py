"""Another language reads what ours writes, and ours what it writes: Node, with nothing but the contract."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import normstats
from tests.server_process import ServerProcess

ROOT = Path(__file__).resolve().parent.parent.parent
NODE = ROOT / "tests" / "node"
SECONDS = 120


@pytest.fixture(scope="module")
def node() -> str:
    """The interpreter, with @grpc/grpc-js beside the script."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("node or npm is not installed")
    if not (NODE / "node_modules" / "@grpc" / "grpc-js").exists():
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(NODE)]
        if subprocess.run(command, capture_output=True, timeout=SECONDS).returncode:
            pytest.skip("npm cannot install @grpc/grpc-js")
    return program


@pytest.mark.parametrize("how", ["unary", "stream"])
@pytest.mark.parametrize("rows", [1, 40_000])
def test_node_gets_what_our_client_gets(node: str, server: ServerProcess, how: str, rows: int) -> None:
    x = np.random.default_rng(rows).normal(5, 2, (rows, 64)).astype(np.float32)
    command = [node, "normalize.mjs", server.target, str(ROOT / "proto"), str(rows), "64", how]
    done = subprocess.run(command, cwd=NODE, input=x.tobytes(), capture_output=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr.decode()
    with normstats.connect(server.target) as client:
        ours = client.normalize(x, normstats.LayerNorm(64))
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32).reshape(x.shape), ours)
