"""The dashboard, taken apart: its panels, their queries, and its variables filled in as Grafana does."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.deploy.manifests import KUSTOMIZE

FILE = KUSTOMIZE / "components/monitoring/dashboard.json"

Panel = dict[str, Any]


class Query(NamedTuple):
    """One query of a panel; `at_once`: it asks for now alone, not for the time that is looked at."""

    panel: str
    ref: str
    expression: str
    at_once: bool


@functools.cache
def dashboard() -> dict[str, Any]:
    """All of it."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def rows() -> list[tuple[Panel, list[Panel]]]:
    """The rows, each with its panels: within it if it is closed, else behind it."""
    found: list[tuple[Panel, list[Panel]]] = []
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            found.append((panel, list(panel["panels"])))
        else:
            found[-1][1].append(panel)
    return found


def panels() -> list[Panel]:
    """All panels that show something."""
    return [panel for _, inside in rows() for panel in inside]


def queries() -> list[Query]:
    """All queries of all panels."""
    return [
        Query(panel["title"], target["refId"], target["expr"], target["instant"])
        for panel in panels()
        for target in panel["targets"]
    ]


def expression_of(panel: str, ref: str = "A") -> str:
    """The expression of a panel's query."""
    (found,) = (one.expression for one in queries() if (one.panel, one.ref) == (panel, ref))
    return found


def variables() -> dict[str, Any]:
    """The variables that are chosen from what Prometheus has, in their order."""
    return {one["name"]: one for one in dashboard()["templating"]["list"] if one["type"] == "query"}


def filled(expression: str, chosen: Mapping[str, Sequence[str]], rate_interval: str = "1m") -> str:
    """An expression with its variables' values, several of which become alternatives."""
    for name, values in chosen.items():
        expression = re.sub(rf"\${name}\b", "|".join(values), expression)
    expression = expression.replace("$__rate_interval", rate_interval)
    assert "$" not in expression, expression
    return expression
