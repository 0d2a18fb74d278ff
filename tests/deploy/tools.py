"""Programs that the tests of deploy/ call. One that is missing skips its test by name."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BESIDE = Path(sys.executable).parent
# checkov's pins are not ours, so it has an environment of its own: `make checkov`.
PLACES = (BESIDE, BESIDE.parent / "checkov/bin")


def tool(name: str) -> str:
    """Where a program is: beside this interpreter, or on the path."""
    found = next((str(place / name) for place in PLACES if (place / name).exists()), None) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@functools.cache
def kubectl() -> str:
    """kubectl, if it has kustomize 5."""
    found = tool("kubectl")
    told = subprocess.run(
        [found, "version", "--client", "--output", "json"], capture_output=True, text=True, check=True
    )
    version = json.loads(told.stdout).get("kustomizeVersion", "v0")
    if int(version.removeprefix("v").split(".")[0]) < 5:
        pytest.skip(f"kubectl has kustomize {version}; 5 is the oldest that knows what is used here")
    return found
