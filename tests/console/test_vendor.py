"""What the console has of others is what they published."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONSOLE = ROOT / "server" / "normserver" / "console"


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_uplot_is_as_npm_has_it() -> None:
    command = [sys.executable, str(ROOT / "tools" / "vendor.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    if "CalledProcessError" in checked.stderr:
        pytest.skip("npm's registry cannot be reached")
    assert checked.returncode == 0, checked.stderr


def test_no_file_names_another_host() -> None:
    for file in CONSOLE.rglob("*"):
        if file.suffix in (".js", ".css", ".html") and file.parent.name != "vendor":
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "//" not in text.replace("// ", "").replace("//#", ""), file.name
            assert "innerHTML" not in text
