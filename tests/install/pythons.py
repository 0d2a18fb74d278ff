"""Pythons of this machine, and virtual environments of theirs with the pip that comes with them or the newest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def python(version: str) -> str:
    """A Python of a version, from the path or from pyenv; skips the test where there is none."""
    candidates = [shutil.which(f"python{version}"), *sorted(PYENV.glob(f"{version}.*/bin/python"), reverse=True)]
    for candidate in candidates:
        if candidate and _says(str(candidate)) == version:
            return str(candidate)
    pytest.skip(f"Python {version} is not installed")


def _says(candidate: str) -> str:
    code = "import ensurepip, sys; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def environment(folder: Path, version: str, newest_pip: bool = False) -> str:
    """Make a virtual environment; return its Python."""
    subprocess.run([python(version), "-m", "venv", str(folder)], check=True)
    made = str(folder / "bin/python")
    if newest_pip:
        command = [made, "-m", "pip", "install", "--quiet", "--upgrade", "pip"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("PyPI is not in reach, so there is no newest pip")
    return made


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user's shell would: without what these tests, `make test` and this machine's pip are told."""
    ours = ("PIP_", "COVERAGE_", "TORCH", "MAKE", "MFLAGS")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False, env=kept | variables
    )
