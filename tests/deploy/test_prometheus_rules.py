"""The rules: that promtool finds nothing wrong, that their tests hold them, and that they fit the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from normserver.access.rules import RULES
from normstats.v1 import normalization_service_pb2 as pb
from tests.deploy.manifests import ROOT, Object, of_kind, rules
from tests.deploy.prometheus import FOLDER
from tests.deploy.tools import tool

TESTS = sorted((FOLDER / "tests").glob("*.yaml"))
ALERTS = [
    "NormstatsDown",
    "NormstatsStoreDown",
    "NormstatsCommitsStalled",
    "NormstatsErrorBudgetBurn",
    "NormstatsQueueSaturated",
    "NormstatsDrift",
    "NormstatsRoundsFailing",
    "NormstatsDuplicatesSurging",
    "NormstatsFilesStale",
    "NormstatsMemoryNearLimit",
]
# Streams of others, beside the service's own: health's and reflection's.
OTHER_STREAMS = {"Watch", "ServerReflectionInfo"}


def alerts() -> list[Object]:
    return [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    command = [tool("promtool"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_promtool_finds_nothing_wrong_in_rules_and_configuration(tmp_path: Path) -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for name in ("prometheus.yml", "rules.yaml"):
        shutil.copy(FOLDER / name, tmp_path)
    for name in ("token", "ca.crt"):
        (tmp_path / name).touch()
    checked = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", TESTS, ids=[file.stem for file in TESTS])
def test_alerts_fire_when_they_should_and_not_when_they_should_not(file: Path) -> None:
    ran = promtool("test", "rules", str(file))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_alerts_are_those_that_were_promised() -> None:
    assert list(dict.fromkeys(rule["alert"] for rule in alerts())) == ALERTS


def cases() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Each time that a test looks at an alert: its name, and the labels of those that fire."""
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            assert len(test["name"]) > 10, "a case is a sentence"
            for case in test.get("alert_rule_test", ()):
                yield case["alertname"], [fired["exp_labels"] for fired in case.get("exp_alerts", ())]


@pytest.mark.parametrize("rule", alerts(), ids=[f"{rule['alert']}, {rule['labels']}" for rule in alerts()])
def test_every_alert_has_a_case_in_which_it_fires_and_two_in_which_it_is_silent(rule: Object) -> None:
    fires = [
        any(rule["labels"].items() <= labels.items() for labels in fired)
        for name, fired in cases()
        if name == rule["alert"]
    ]
    assert fires.count(True) >= 1
    assert fires.count(False) >= 2


def test_a_case_fails_for_every_alert_that_does_not_wait(tmp_path: Path) -> None:
    changed = re.sub(r"^( +for:) \w+$", r"\1 0s", (FOLDER / "rules.yaml").read_text(), flags=re.MULTILINE)
    (tmp_path / "rules.yaml").write_text(changed)
    shutil.copytree(FOLDER / "tests", tmp_path / "tests")
    # What takes days is tried for hours as well.
    hours = [f"tests/{file.name}" for file in TESTS if file.stem != "objective_days"]
    ran = promtool("test", "rules", *hours, folder=tmp_path)
    assert ran.returncode != 0
    failed = set(re.findall(r"alertname: (\w+), time", ran.stdout + ran.stderr))
    assert failed == set(ALERTS)


def test_each_alert_says_how_bad_it_is_what_has_happened_and_where_to_read_on() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+m", rule["for"])
        summary, description, runbook = (
            rule["annotations"][name] for name in ("summary", "description", "runbook_url")
        )
        assert summary.endswith(".")
        assert description.endswith(".")
        assert "$labels" in description
        assert runbook == f"deploy/README.md#{rule['alert'].lower()}"


def methods_of(expression: str, matcher: str) -> set[str]:
    """What a matcher of methods leaves out: all that it matches of those that there are."""
    found = set(re.findall(rf'{matcher}"([^"]+)"', expression))
    every = {path.rpartition("/")[2] for path in RULES} | OTHER_STREAMS | {"Check"}
    return {method for pattern in found for method in every if re.fullmatch(pattern, method)}


def streams() -> set[str]:
    service = pb.DESCRIPTOR.services_by_name["NormalizationService"]
    own = {one.name for one in service.methods if one.client_streaming or one.server_streaming}
    return own | OTHER_STREAMS


def test_how_long_calls_take_is_told_of_all_that_are_no_streams() -> None:
    for rule in rules():
        if rule.get("record", "").startswith("normstats:call_seconds:"):
            assert methods_of(rule["expr"], "method!~") == streams()


def test_the_objective_is_about_what_callers_ask_for() -> None:
    by_name = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    watched = {"Check", "WatchRunningStats", "WatchActivity", *OTHER_STREAMS}
    assert methods_of(by_name["normstats:calls:rate2m"], "method!~") == watched
    assert methods_of(by_name["normstats:failed_calls:rate2m"], "method!~") == watched | streams()


def test_reasons_that_are_callers_own_are_those_that_the_server_gives() -> None:
    (failed,) = (rule["expr"] for rule in rules() if rule.get("record") == "normstats:failed_calls:rate2m")
    (reasons,) = re.findall(r'reason!~"([^"]+)"', failed)
    source = "".join(file.read_text() for file in (ROOT / "server/normserver").rglob("*.py"))
    for reason in reasons.split("|"):
        assert f'reason="{reason}"' in source


def test_the_operator_is_given_the_same_rules() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "tools/generate_rules.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    (made,) = of_kind("overlays/monitoring", "PrometheusRule")
    groups: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    assert made["spec"] == groups
