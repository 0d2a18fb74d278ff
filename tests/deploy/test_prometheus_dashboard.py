"""The dashboard: that Grafana can draw it, that each panel says what it shows, and that all of it comes to Grafana."""

from __future__ import annotations

import json
import re

from tests.deploy.dashboard import FILE, dashboard, panels, queries, rows, variables
from tests.deploy.manifests import of_kind, rules

ROWS = [
    "Health at a glance",
    "Calls",
    "Normalize",
    "Contributions and commits",
    "Rounds and streams",
    "Memory and process",
    "Device",
    "Named normalizers",
]
# kubectl apply keeps what it applied in an annotation, and all annotations together have this much.
MOST_BYTES = 256 * 1024
WIDTH = 24


def test_it_has_its_rows_and_the_first_are_open() -> None:
    assert [row["title"] for row, _ in rows()] == ROWS
    assert [row["collapsed"] for row, _ in rows()] == [False] * 4 + [True] * 4


def test_every_panel_says_what_it_shows_in_which_unit_and_from_where() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    for panel in panels():
        assert panel["type"] in ("stat", "timeseries", "table")
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        if panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"]
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))


def test_panels_lie_beside_each_other_and_fill_no_row_twice() -> None:
    every = [panel for row, inside in rows() for panel in (row, *inside)]
    numbers = [panel["id"] for panel in every]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                # Those of closed rows lie where the next closed row does, until it is opened.
                assert (x, y) not in taken or panel["type"] == "row"
                taken.add((x, y))


def test_all_but_datasource_and_normalizer_narrow_every_query_of_servers() -> None:
    assert list(variables()) == ["job", "namespace", "pod", "normalizer"]
    for one in queries():
        assert "$namespace" in one.expression
        if "normstats_normalizer_" in one.expression:
            assert "$normalizer" in one.expression
        elif "normstats:" not in one.expression and "ALERTS" not in one.expression:
            selectors = re.findall(r"\{[^}]*\}", one.expression)
            assert selectors
            assert all({"$job", "$namespace", "$pod"} <= set(re.findall(r"\$\w+", every)) for every in selectors)


def test_rates_are_as_long_as_scrapes_need() -> None:
    for one in queries():
        for window in re.findall(r"\b(?:rate|deriv|increase)\([^\[]*\[([^\]]+)\]", one.expression):
            assert window == "$__rate_interval"


def test_alerts_that_panels_name_are_alerts_and_each_is_named() -> None:
    named = {name for panel in panels() for name in re.findall(r"Normstats\w+", panel["description"])}
    assert named == {rule["alert"] for rule in rules() if "alert" in rule}


def test_grafana_is_brought_it_by_a_config_map_of_a_name_that_stays() -> None:
    (found,) = (
        one for one in of_kind("overlays/monitoring", "ConfigMap") if one["metadata"]["name"] == "normstats-dashboard"
    )
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert found["metadata"]["namespace"] == "normstats"
    assert json.loads(found["data"]["normstats.json"]) == dashboard()
    assert len(json.dumps(found)) < MOST_BYTES * 0.8


def test_it_is_written_as_it_is_read() -> None:
    assert dashboard()["schemaVersion"] == 42
    assert (dashboard()["uid"], dashboard()["title"]) == ("normstats", "normstats")
    assert "id" not in dashboard(), "Grafana gives one"
    assert "\t" not in FILE.read_text()
