"""What deploy/ gives to Kubernetes: overlays rendered, examples as they are, and where things are in them."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import kubectl

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
README = (DEPLOY / "README.md").read_text()
RENDERED = ["base", *(f"overlays/{one.name}" for one in sorted((KUSTOMIZE / "overlays").iterdir()))]
# Values for Helm: no object of Kubernetes.
ADAPTER = KUSTOMIZE / "examples/prometheus-adapter.yaml"
EXAMPLES = [f"examples/{one.name}" for one in sorted((KUSTOMIZE / "examples").iterdir()) if one != ADAPTER]
ALL = [*RENDERED, *EXAMPLES]
POD_IP = "10.1.2.3"
WORKLOADS = ("StatefulSet", "Deployment", "Job", "CronJob")

Object = dict[str, Any]


@functools.cache
def text_of(which: str) -> str:
    """An overlay rendered, or an example as it is."""
    if which.startswith("examples/"):
        return (KUSTOMIZE / which).read_text()
    return rendered(KUSTOMIZE / which)


def rendered(folder: Path) -> str:
    """What kustomize makes of a folder."""
    made = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not made.stderr, "kubectl warns"
    return made.stdout


def parsed(text: str) -> list[Object]:
    """The objects of a text."""
    return [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]


@functools.cache
def objects(which: str) -> list[Object]:
    """All of an overlay or an example."""
    return parsed(text_of(which))


def of_kind(which: str, kind: str) -> list[Object]:
    """Those of one kind."""
    return [one for one in objects(which) if one["kind"] == kind]


def pod(workload: Object) -> Object:
    """The template of a workload's pods."""
    spec = workload["spec"]
    template: Object = (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]
    return template


def pods(which: str) -> list[Object]:
    """The templates of all pods."""
    return [pod(one) for one in objects(which) if one["kind"] in WORKLOADS]


def server(which: str) -> Object:
    """The template of the server's pods; its first container is the server."""
    return pod(workload_of(which))


def workload_of(which: str) -> Object:
    """What makes the server's pods."""
    (found,) = (one for one in objects(which) if one["kind"] in ("StatefulSet", "Deployment"))
    return found


def claim_templates() -> list[str]:
    """The volumes that the base asks for, by name."""
    return [one["metadata"]["name"] for one in workload_of("base")["spec"]["volumeClaimTemplates"]]


def mounted(which: str) -> dict[str, Object]:
    """What the server has mounted, by path."""
    claims = workload_of(which)["spec"].get("volumeClaimTemplates", ())
    volumes: dict[str, Object] = {one["metadata"]["name"]: {"persistentVolumeClaim": {}} for one in claims}
    volumes |= {one["name"]: one for one in server(which)["spec"]["volumes"]}
    mounts = server(which)["spec"]["containers"][0]["volumeMounts"]
    return {one["mountPath"]: volumes[one["name"]] for one in mounts}


def settings_files(which: str) -> dict[str, str]:
    """The texts that ConfigMaps bring to the server, by path."""
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(which, "ConfigMap")}
    configured = {path: volume["configMap"]["name"] for path, volume in mounted(which).items() if "configMap" in volume}
    return {f"{path}/{name}": text for path, made in configured.items() for name, text in maps[made].items()}


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value within a value, with the keys that lead to it."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, path)


@functools.cache
def rules() -> list[Object]:
    """What Prometheus records and alerts to."""
    file = DEPLOY / "prometheus/rules.yaml"
    if not file.exists():
        pytest.skip("there is no deploy/prometheus/rules.yaml")
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def images_variables() -> dict[str, str]:
    """The folders that the image's own variables name."""
    return dict(re.findall(r"(\w+)=(/\S+)", (DEPLOY / "Dockerfile").read_text().split(" AS cuda\n")[1]))
