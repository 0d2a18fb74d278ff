"""What deploy/README.md says to type works, and it tells of every alert."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from normserver.metrics import Metrics
from normstats.cli.app import cli
from tests.deploy.manifests import (
    ADAPTER,
    DEPLOY,
    README,
    ROOT,
    WORKLOADS,
    Object,
    objects,
    parsed,
    pod,
    rendered,
    rules,
    server,
)

METRIC = r"\bnormstats[:_][a-z][a-z0-9_:]*"


def commands(text: str) -> list[list[str]]:
    """What follows `normstats` in each line of a shell that calls it, up to a pipe."""
    lines = re.findall(r"^ *normstats ([^|\n]+)", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def _examples() -> list[list[str]]:
    (job,) = (pod(one)["spec"]["containers"][0] for one in objects("examples/restore.yaml"))
    (cron,) = (pod(one)["spec"]["containers"][0] for one in objects("examples/backup.yaml") if one["kind"] == "CronJob")
    return [*commands(cron["args"][0]), [*job["command"], *job["args"]][1:], *commands(README)]


def test_every_command_of_examples_and_readme_is_one_that_normstats_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.touch()
    for command in _leaves(cli):
        monkeypatch.setattr(command, "callback", lambda **_: None)
    found = _examples()
    assert {"backup", "verify", "restore", "token"} <= {word for one in found for word in one}
    for words in found:
        told = CliRunner().invoke(cli, [str(there) if one.endswith("ca.crt") else one for one in words])
        assert told.exit_code == 0, (words, told.output)


def _leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for one in command.commands.values():
            yield from _leaves(one)
    else:
        yield command


@pytest.mark.parametrize("which", ["base", "overlays/postgres"])
def test_the_overlay_that_the_readme_begins_with_can_be_put_together_with_everything(
    which: str, tmp_path: Path
) -> None:
    (mine,) = re.findall(r"```yaml\n(# mine.*?)```", README, re.DOTALL)
    mine = mine.replace("kustomize/base # or overlays/postgres", f"kustomize/{which}")
    mine = mine.replace("components:\n", "components:\n  - ../normstats/deploy/kustomize/components/gpu\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(mine)
    (tmp_path / "normstats").symlink_to(ROOT)
    found = parsed(rendered(tmp_path / "mine"))
    (spec,) = (pod(one)["spec"] for one in found if one["kind"] in WORKLOADS)
    images = {container["image"] for container in [*spec["initContainers"], *spec["containers"]]}
    assert images == {"ghcr.io/you/normstats@sha256:..."}
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "ServiceMonitor" in {one["kind"] for one in found}


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (DEPLOY / target).exists(), target
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    for path in re.findall(r"deploy/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path


def test_it_tells_what_to_do_about_every_alert() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    _, section = README.split("\n## Alerts\n")
    told = re.findall(r"^### (\w+)$", section, re.MULTILINE)
    assert set(told) == {rule["alert"] for rule in alerts}
    assert len(told) == len(set(told))
    for rule in alerts:
        assert rule["annotations"]["runbook_url"].endswith(f"deploy/README.md#{rule['alert'].lower()}")


@pytest.mark.parametrize("alert", re.findall(r"^### (Normstats\w+)$", README, re.MULTILINE))
def test_each_alert_has_its_meaning_something_to_look_at_and_something_that_helps(alert: str) -> None:
    text = README.split(f"\n### {alert}\n")[1].split("\n### ")[0]
    meaning, look, rest = text.split("```\n", 2)
    assert meaning.strip()
    assert look.strip()
    assert re.search(r"^(- |\| \w)", rest, re.MULTILINE)


def test_every_metric_that_it_names_is_counted_recorded_or_adapted() -> None:
    families = list(Metrics().registry.collect())
    suffixes = {"counter": ["_total"], "histogram": ["", "_bucket", "_sum", "_count"]}
    known = {one.name + suffix for one in families for suffix in suffixes.get(one.type, [""])}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    known |= {name for rule in rules() for name in re.findall(METRIC, rule["expr"])}
    known |= {rule["name"]["as"] for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]}
    assert set(re.findall(METRIC, README)) <= known


def test_its_sizes_are_the_figures_that_were_measured() -> None:
    (table,) = re.findall(r"^\| producers x features \| take .*\n((?:\|.*\n)+)", README, re.MULTILINE)
    measured = (ROOT / "README.md").read_text()
    for row in table.splitlines()[1:]:
        load, take, rate, milliseconds = (cell.strip() for cell in row.strip("|").split("|"))
        (cells,) = re.findall(rf"^\| {load} \|(.+)", measured, re.MULTILINE)
        sqlite, _, two_servers, *_ = cells.split("|")
        assert (two_servers if "two servers" in take else sqlite).strip().startswith(f"{rate} ({milliseconds}, ")


def _proposed(heading: str, overlay: str, tmp_path: Path) -> list[tuple[Object, Object]]:
    """What the patches below a heading change of an overlay: pairs of before and after."""
    (change,) = re.findall(r"```yaml\n(patches:.*?)```", README.split(f"# {heading}\n")[1].split("\n#")[0], re.DOTALL)
    beginning = f"kind: Kustomization\nresources: [../normstats/deploy/kustomize/{overlay}]\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(beginning + change)
    (tmp_path / "normstats").symlink_to(ROOT)
    before, after = objects(overlay), parsed(rendered(tmp_path / "mine"))
    return [(one, other) for one, other in zip(before, after, strict=True) if one != other]


def test_every_change_that_it_proposes_is_tried_here() -> None:
    assert len(re.findall(r"```yaml\npatches:", README)) == 3


def test_the_autoscaler_can_do_without_queue_time(tmp_path: Path) -> None:
    ((one, other),) = _proposed("How many there are", "overlays/postgres", tmp_path)
    assert one["kind"] == "HorizontalPodAutoscaler"
    assert other["spec"]["metrics"] == one["spec"]["metrics"][1:]


@pytest.mark.parametrize("overlay", ["base", "overlays/postgres"])
def test_images_can_be_pulled_with_a_secret(overlay: str, tmp_path: Path) -> None:
    ((one, other),) = _proposed("A registry that asks who you are", overlay, tmp_path)
    assert one["kind"] == "ServiceAccount"
    (named,) = other["imagePullSecrets"]
    assert f"create secret docker-registry {named['name']} " in README
    names = {pod(made)["spec"]["serviceAccountName"] for made in objects(overlay) if made["kind"] in WORKLOADS}
    assert names == {one["metadata"]["name"]}


def test_a_gpu_can_do_without_a_runtime_class(tmp_path: Path) -> None:
    ((one, other),) = _proposed("A GPU", "overlays/gpu", tmp_path)
    without = {name: value for name, value in pod(one)["spec"].items() if name != "runtimeClassName"}
    assert pod(one)["spec"] != without == pod(other)["spec"]


def test_the_console_is_at_the_port_that_is_forwarded() -> None:
    (port,) = re.findall(r"port-forward statefulset/normstats (\d+)$", README, re.MULTILINE)
    ports = {one["name"]: one["containerPort"] for one in server("base")["spec"]["containers"][0]["ports"]}
    assert ports["http"] == int(port)
    assert f"https://localhost:{port}" in README
