"""The wire's parsers, and a coverage-guided fuzz of them: they read what protobuf reads, and raise nothing else."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Promise
from tests.faults.fuzz import wire

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "fuzz" / "corpus"
SECONDS = 60


@pytest.mark.parametrize("found", sorted(path.name for path in CORPUS.iterdir()))
def test_what_was_found_before_is_read_as_protobuf_reads_it(found: str) -> None:
    wire.check((CORPUS / found).read_bytes())


@pytest.mark.faults
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_a_minute_of_other_bytes(tmp_path: Path, promise: Promise) -> None:
    corpus = shutil.copytree(CORPUS, tmp_path / "corpus")
    options = [f"-max_total_time={SECONDS}", "-max_len=512", f"-artifact_prefix={tmp_path}/crash-"]
    command = [sys.executable, "-m", "tests.faults.fuzz", str(corpus), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 90, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    done = re.search(r"Done (\d+) runs in \d+ second", ended.stderr)
    assert done is not None, ended.stderr[-4000:]
    crashes = list(tmp_path.glob("crash-*"))
    promise(f"The wire's parsers, {SECONDS} s of atheris", "no crash", f"{done[1]} executions, {len(crashes)} crashes")
