"""Write dist/normstats.cdx.json: a CycloneDX list of all that a server runs with, as it is installed here.

cyclonedx-py tells versions and licences of what is installed, and hashes of what is pinned. What tests and builds alone
need is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "dist" / "normstats.cdx.json"
SERVER = Requirement("normstats[server,postgres]")
# The licences of those whose metadata name theirs in words of their own.
LICENSES = {"protobuf": "BSD-3-Clause"}


def listed(*arguments: str, read: str = "") -> Any:
    """What cyclonedx-py says, without times and random numbers."""
    command = [sys.executable, "-m", "cyclonedx_py", *arguments, "--output-reproducible", "--output-format", "JSON"]
    return json.loads(
        subprocess.run(command, cwd=ROOT, input=read, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def canonical(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub("[-_.]+", "-", name).lower()


def key(component: Any) -> tuple[str, str]:
    """What tells a component from others."""
    return canonical(component["name"]), component["version"]


def closure(requirement: Requirement, found: set[tuple[str, str]]) -> set[str]:
    """The names of all that a requirement needs here, its own included. `found` are those seen, and their extras."""
    names = {canonical(requirement.name)}
    for extra in ("", *requirement.extras):
        if (requirement.name, extra) in found:
            continue
        found.add((requirement.name, extra))
        for needed in map(Requirement, distribution(requirement.name).requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                names |= closure(needed, found)
    return names


def bill() -> Any:
    """The list: what is installed and needed, with the hashes that it was installed by."""
    bom = listed("environment", sys.executable, "--pyproject", "pyproject.toml")
    needed = closure(SERVER, set())
    pinned = "".join((ROOT / f"constraints-{what}.txt").read_text() for what in ("server", "torch", "torch-cpu"))
    files = {key(one): one["externalReferences"] for one in listed("requirements", "-", read=pinned)["components"]}
    bom["components"] = [one for one in bom["components"] if canonical(one["name"]) in needed]
    for component in bom["components"]:
        component.setdefault("externalReferences", []).extend(files.get(key(component), ()))
        if component["name"] in LICENSES:
            component.setdefault("licenses", [{"license": {"id": LICENSES[component["name"]]}}])
    kept = {one["bom-ref"] for one in bom["components"]} | {bom["metadata"]["component"]["bom-ref"]}
    bom["dependencies"] = [
        one | {"dependsOn": sorted(kept.intersection(one.get("dependsOn", ())))}
        for one in bom["dependencies"]
        if one["ref"] in kept
    ]
    return bom


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(bill(), indent=2) + "\n")
    print(TARGET.relative_to(ROOT))
