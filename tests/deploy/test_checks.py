"""Other people's checks of what deploy/ has: Kubernetes' own schemas, checkov, hadolint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest

from tests.deploy.manifests import ALL, DEPLOY, README, objects, text_of
from tests.deploy.tools import tool

OLDEST_AND_NEWEST = re.search(r"Kubernetes (1\.\d+) to (1\.\d+)", README).groups()  # type: ignore[union-attr]
# Kinds that others define, for which Kubernetes has no schema.
OTHERS = ("monitoring.coreos.com/", "cert-manager.io/", "postgresql.cnpg.io/")


@pytest.mark.parametrize("version", OLDEST_AND_NEWEST)
@pytest.mark.parametrize("which", ALL)
def test_the_oldest_and_the_newest_kubernetes_take_it(which: str, version: str) -> None:
    for one in objects(which):
        if not one["apiVersion"].startswith(OTHERS):
            assert kubernetes_validate.validate(one, version, strict=True) == version


def test_checkov_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "Dockerfile", tmp_path)
    for which in ALL:
        (tmp_path / f"{which.replace('/', '-').removesuffix('.yaml')}.yaml").write_text(text_of(which))
    command = [tool("checkov"), "--framework", "kubernetes", "dockerfile", "--directory", str(tmp_path)]
    made = subprocess.run(
        [*command, "--output", "json", "--skip-download"], capture_output=True, text=True, check=False
    )
    told = {one["check_type"]: one["results"] for one in json.loads(made.stdout)}
    assert {"kubernetes", "dockerfile"} == told.keys(), made.stderr
    for results in told.values():
        assert [(one["check_id"], one["file_path"], one["resource"]) for one in results["failed_checks"]] == []
        assert results["passed_checks"]
        for skipped in results["skipped_checks"]:
            assert len(skipped["check_result"]["suppress_comment"]) > 20, skipped["check_id"]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    command = [tool("hadolint"), str(DEPLOY / "Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
