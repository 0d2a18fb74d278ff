"""A real Prometheus of a test's own, on a free port of 127.0.0.1, stopped by its own process id."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from tests.deploy.manifests import DEPLOY
from tests.deploy.tools import tool

FOLDER = DEPLOY / "prometheus"
START_SECONDS = 30.0
# As often as a machine that others use too can do with.
EVERY = "1s"

Labels = Mapping[str, str]


class Sample(NamedTuple):
    """A series, and its value."""

    labels: Labels
    value: float


class Prometheus:
    """With what deploy/prometheus has: rules.yaml, and prometheus.yml, but for its targets and how often it looks."""

    def __init__(self, folder: Path, target: str, *, names: list[str], snapshot: str) -> None:
        """It looks at `target`, HOST:PORT, and at pages of these normalizers. Its token and ca.crt are in `folder`."""
        self._folder = folder
        self._program = tool("prometheus")
        shutil.copy(FOLDER / "rules.yaml", folder)
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY}
        servers, normalizers = config["scrape_configs"]
        normalizers.pop("scrape_interval")
        normalizers["params"] = {"name": names, "snapshot": [snapshot]}
        for job in (servers, normalizers):
            job["static_configs"][0]["targets"] = [target]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._api = httpx.Client()

    def start(self) -> Prometheus:
        """Start it, and return once it answers."""
        command = [self._program, "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.format=json"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--web.listen-address=127.0.0.1:0"], cwd=self._folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while (address := self._listening()) is None:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        self._api.base_url = httpx.URL(f"http://{address}")
        while self._api.get("/-/ready").status_code != 200:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """Be gone."""
        self._api.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)

    def query(self, expression: str) -> list[Sample]:
        """What it says to an expression now, NaN left out."""
        data = self._asked("/api/v1/query", query=expression)
        found = [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]
        samples = [Sample(one["metric"], float(one["value"][1])) for one in found]
        return [one for one in samples if one.value == one.value]

    def value(self, expression: str) -> float:
        """The value of an expression that has one; 0 if it has none."""
        found = self.query(expression)
        assert len(found) <= 1, (expression, found)
        return found[0].value if found else 0.0

    def by(self, label: str, expression: str) -> dict[str, float]:
        """The values of an expression, by one label."""
        return {one.labels.get(label, ""): one.value for one in self.query(expression)}

    def drawn(self, expression: str, seconds: int, step: int = 1) -> list[Sample]:
        """The last value of each series of the time until now; those that are never a number are left out."""
        now = time.time()
        data = self._asked("/api/v1/query_range", query=expression, start=now - seconds, end=now, step=step)
        return [
            Sample(one["metric"], numbers[-1])
            for one in data["result"]
            if (numbers := [value for _, text in one["values"] if (value := float(text)) == value])
        ]

    def values_of(self, label: str, selector: str) -> list[str]:
        """The values of a label, of series that there are."""
        found: list[str] = self._asked(f"/api/v1/label/{label}/values", **{"match[]": selector})
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or fire."""
        found: list[dict[str, Any]] = self._asked("/api/v1/alerts")["alerts"]
        return found

    def ill_rules(self) -> list[dict[str, Any]]:
        """Rules that could not be evaluated, and those that have not been."""
        groups = self._asked("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"] if rule["health"] != "ok"]

    def _asked(self, path: str, **parameters: Any) -> Any:
        reply = self._api.get(path, params=parameters, timeout=20).json()
        assert reply["status"] == "success", (parameters, reply)
        assert not reply.get("warnings"), reply
        return reply["data"]

    def _listening(self) -> str | None:
        for line in self._log.read_text().splitlines():
            if re.search(r'"msg":"Listening on"', line):
                return str(json.loads(line)["address"])
        return None
