"""What is installed is pinned and hashed, for those who test and those who serve; what a server runs with is listed."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("constraints.txt", "constraints-server.txt", "constraints-torch.txt", "constraints-torch-cpu.txt")


def pins(lock: str) -> dict[str, str]:
    """The versions of a file, by name. A package that has one version here and another there has both."""
    found: dict[str, str] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line and not line.startswith(("#", " ")):
            requirement = Requirement(line.removesuffix("\\"))
            found[requirement.name] = found.get(requirement.name, "") + str(requirement.specifier)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_version_is_pinned_and_hashed(lock: str) -> None:
    for pin in re.split(r"\n(?=[a-z])", (ROOT / lock).read_text().split("\n", 1)[1].strip()):
        assert re.fullmatch(r"[a-z0-9.-]+==[^ ]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", pin), pin


def test_a_server_runs_with_what_was_tested() -> None:
    tested = pins("constraints.txt")
    assert pins("constraints-server.txt").items() <= tested.items()
    torch, cpu = pins("constraints-torch.txt"), pins("constraints-torch-cpu.txt")
    assert cpu["torch"] == f"{torch['torch']}{torch['torch']}+cpu"  # PyPI's own, and the one for Linux
    assert torch["triton"] in tested["triton"]


def test_all_that_is_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    asked += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    names = {re.sub("[-_.]+", "-", Requirement(one).name).lower() for one in asked} - {"normstats"}
    assert names <= pins("constraints.txt").keys() | pins("constraints-torch.txt").keys()


@pytest.mark.faults
@pytest.mark.skipif(importlib.util.find_spec("cyclonedx_py") is None, reason="cyclonedx-py is not installed")
def test_the_list_of_what_a_server_runs_with_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # measured, it takes twice as long
    monkeypatch.syspath_prepend(ROOT)
    from tools import sbom

    bill = sbom.bill()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    listed = {one["name"]: one for one in bill["components"]}
    assert {"grpcio", "torch", "protobuf", "SQLAlchemy"} <= listed.keys()
    assert not {"pytest", "mypy", "hatchling", "cyclonedx-bom"} & listed.keys()
    for name, one in listed.items():
        assert one["licenses"], name
        assert any("hashes" in reference for reference in one["externalReferences"]), name
