"""Servers are added by how long work waits, in a metric that the adapter serves and a rule records."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy.manifests import ADAPTER, Object, of_kind, rules, workload_of

POSTGRES = "overlays/postgres"
RECORDED = "normstats:queue_seconds:p90"


def scaler() -> Object:
    (found,) = of_kind(POSTGRES, "HorizontalPodAutoscaler")
    spec: Object = found["spec"]
    return spec


def test_it_scales_the_servers_by_queue_time_and_by_cpu_where_that_cannot_be_read() -> None:
    workload, target = workload_of(POSTGRES), scaler()["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (workload["kind"], workload["metadata"]["name"])
    queue, cpu = scaler()["metrics"]
    assert queue["type"] == "Pods"
    assert queue["pods"]["target"] == {"type": "AverageValue", "averageValue": "20m"}
    assert (cpu["type"], cpu["resource"]["name"]) == ("Resource", "cpu")
    requests = workload["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert "cpu" in requests, "a utilization is of what is requested"


def test_it_adds_servers_at_once_and_takes_them_away_slowly() -> None:
    up, down = (scaler()["behavior"][way] for way in ("scaleUp", "scaleDown"))
    assert (up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"]) == (0, 600)
    per_minute = [60 * one["value"] / one["periodSeconds"] for way in (up, down) for one in way["policies"]]
    assert per_minute == [3, 0.5]


def test_the_adapter_serves_what_it_asks_for_from_what_is_recorded() -> None:
    values: dict[str, Any] = yaml.safe_load(ADAPTER.read_text())
    (rule,) = values["rules"]["custom"]
    assert values["rules"]["default"] is False
    (series,) = re.findall(r"^([\w:]+)\{", rule["seriesQuery"])
    assert series == RECORDED
    assert re.search(rule["name"]["matches"], series)
    assert rule["name"]["as"] == scaler()["metrics"][0]["pods"]["metric"]["name"]
    labels = {label: of["resource"] for label, of in rule["resources"]["overrides"].items()}
    assert labels == {"namespace": "namespace", "pod": "pod"}
    assert all(f'{label}!=""' in rule["seriesQuery"] for label in labels)
    assert {"<<.Series>>", "<<.LabelMatchers>>", "<<.GroupBy>>"} == set(re.findall("<<.*?>>", rule["metricsQuery"]))


def test_what_the_adapter_reads_is_recorded_by_server() -> None:
    (expression,) = (rule["expr"] for rule in rules() if rule.get("record") == RECORDED)
    assert re.search(r"\bnormstats_phase_seconds_bucket\{[^}]*phase=\"queue\"", expression)
    (by,) = (set(re.split(r",\s*", labels)) for labels in re.findall(r"by ?\(([^)]*)\)", expression))
    assert by == {"le", "namespace", "pod"}
