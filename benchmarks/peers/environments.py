"""Virtual environments for the peers, made once under benchmarks/.venvs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".venvs"


def python_with(name: str, *packages: str, interpreter: str = sys.executable) -> Path:
    """The interpreter of a virtual environment that has these packages, made by the one given.

    Raises:
        subprocess.CalledProcessError: they cannot be installed.
        FileNotFoundError: there is no such interpreter.
    """
    folder = FOLDER / name
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = " ".join(packages)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, *packages], check=True)
        done.write_text(wanted)
    return python
