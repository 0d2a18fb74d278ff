"""What every overlay makes is a server that the program is: its flags, ports, probes, files and volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
import yaml

from normserver import config
from normserver.http import application
from normserver.store import urls
from tests.deploy.manifests import (
    KUSTOMIZE,
    POD_IP,
    RENDERED,
    Object,
    images_variables,
    mounted,
    objects,
    of_kind,
    parsed,
    server,
    workload_of,
)


@pytest.mark.parametrize("which", RENDERED)
def test_each_overlay_is_one_server_in_one_namespace(which: str) -> None:
    found = objects(which)
    assert len({(one["kind"], one["metadata"]["name"]) for one in found}) == len(found)
    assert {one["metadata"].get("namespace", "") for one in found if one["kind"] != "Namespace"} == {"normstats"}
    assert {"ServiceAccount", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {one["kind"] for one in found}
    assert server(which)["spec"]["containers"][0]["name"] == "normstats"


@pytest.mark.parametrize("which", RENDERED)
def test_the_server_takes_the_command_line_and_its_ports_are_those_that_others_name(
    which: str, settings: Callable[[str], config.Settings]
) -> None:
    loaded, container = settings(which), server(which)["spec"]["containers"][0]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    listening = {name: config.split_address(address) for name, address in _addresses(loaded).items()}
    assert {name: port for name, (_, port) in listening.items()} == ports
    assert {host for host, _ in listening.values()} == {"0.0.0.0"}

    assert container["startupProbe"]["grpc"] == container["readinessProbe"]["grpc"] == {"port": ports["health"]}
    page = container["livenessProbe"]["httpGet"]
    told = application(None, str, str, bool, str, needs_token=True)  # type: ignore[arg-type]
    pages = {route.path for route in told.routes}  # type: ignore[attr-defined]
    scheme = "HTTPS" if loaded.tls_cert else "HTTP"
    assert (page["port"], page["scheme"], page["path"] in pages) == ("http", scheme, True)

    for one in objects(which):
        if one["kind"] == "Service":
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports.keys()
            assert all(port["port"] == ports[port["targetPort"]] for port in one["spec"]["ports"])
        if one["kind"] == "NetworkPolicy" and one["spec"]["podSelector"]:
            inward = [port["port"] for rule in one["spec"].get("ingress", ()) for port in rule["ports"]]
            assert set(inward) <= ports.keys()
        if one["kind"] == "ServiceMonitor":
            (endpoint,) = one["spec"]["endpoints"]
            (scraped,) = _selected(objects(which), "Service", one["spec"]["selector"]["matchLabels"])
            targets = {port["name"]: port["targetPort"] for port in scraped["spec"]["ports"]}
            assert (targets[endpoint["port"]], endpoint["path"] in pages) == ("http", True)
            assert endpoint["scheme"].upper() == scheme


def _addresses(loaded: config.Settings) -> dict[str, str]:
    return {"grpc": loaded.listen, "health": loaded.health, "http": loaded.http}


@pytest.mark.parametrize("which", RENDERED)
def test_callers_are_known_and_encrypted_but_in_dev(which: str, settings: Callable[[str], config.Settings]) -> None:
    loaded = settings(which)
    assert loaded.insecure == (which == "overlays/dev")
    guarded = (loaded.tls_cert is not None, loaded.tls_key is not None, loaded.credentials is not None)
    assert guarded == (not loaded.insecure,) * 3
    assert not loaded.reflection


@pytest.mark.parametrize("which", RENDERED)
def test_there_is_time_to_drain(which: str, settings: Callable[[str], config.Settings]) -> None:
    spec = server(which)["spec"]
    asleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > asleep + settings(which).drain_seconds


@pytest.mark.parametrize("which", RENDERED)
def test_what_is_written_lies_on_volumes_and_what_is_read_is_mounted(
    which: str, settings: Callable[[str], config.Settings]
) -> None:
    loaded, spec, volumes = settings(which), server(which)["spec"], mounted(which)
    container = spec["containers"][0]

    def kind_at(path: str | Path) -> str:
        """What is mounted where a path lies."""
        (kind,) = {
            kind
            for mount in (PurePosixPath(path), *PurePosixPath(path).parents)
            for kind in volumes.get(str(mount), {}).keys() - {"name"}
        }
        return kind

    for mount in container["volumeMounts"]:
        assert mount.get("readOnly", False) == (kind_at(mount["mountPath"]) in ("secret", "configMap"))
    image = images_variables()
    own = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    written = {name: path for name, path in (image | own).items() if name.endswith(("_CACHE_DIR", "_CACHE_PATH"))}
    assert {"NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"} == written.keys()
    assert {kind_at(path) for path in [*written.values(), "/tmp"]} == {"emptyDir"}
    (kernels,) = spec["initContainers"]
    *_, source, destination = kernels["command"]
    assert source == image["NUMBA_CACHE_DIR"]
    assert f"{destination}/{PurePosixPath(source).name}" == own["NUMBA_CACHE_DIR"]
    assert kernels["image"] == container["image"]

    read = [path for path in (loaded.tls_cert, loaded.tls_key, loaded.credentials) if path is not None]
    assert all(kind_at(path) == "secret" for path in read)
    if loaded.store.startswith("sqlite"):
        assert kind_at(urls.file_of(urls.parse(loaded.store))) == "persistentVolumeClaim"


@pytest.mark.parametrize("which", RENDERED)
def test_one_server_has_a_file_and_many_share_a_database(
    which: str, settings: Callable[[str], config.Settings]
) -> None:
    loaded, workload = settings(which), workload_of(which)
    scalers = of_kind(which, "HorizontalPodAutoscaler")
    if loaded.store.startswith("sqlite"):
        assert (workload["kind"], workload["spec"]["replicas"], scalers) == ("StatefulSet", 1, [])
        access = "ReadWriteOnce" if which == "overlays/dev" else "ReadWriteOncePod"
        assert workload["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == [access]
    else:
        (scaler,) = scalers
        assert (workload["kind"], scaler["spec"]["minReplicas"]) == ("Deployment", 3)
        assert "replicas" not in workload["spec"], "every apply would undo what the autoscaler did"
        assert loaded.max_connection_age_seconds == 300, "a server that is added gets work"
        assert loaded.advertise == f"{POD_IP}:{config.split_address(loaded.listen)[1]}"


@pytest.mark.parametrize("component", sorted(one.name for one in (KUSTOMIZE / "components").iterdir()))
def test_an_overlay_shows_what_a_component_adds(component: str) -> None:
    folder = KUSTOMIZE / "components" / component
    added = yaml.safe_load((folder / "kustomization.yaml").read_text()).get("resources", ())
    names = {_name(one) for file in added for one in parsed((folder / file).read_text())}
    assert names <= {_name(one) for one in objects(f"overlays/{component}")}
    assert objects(f"overlays/{component}") != objects("base")


def _name(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _selected(found: list[Object], kind: str, labels: dict[str, str]) -> list[Object]:
    return [one for one in found if one["kind"] == kind and labels.items() <= one["metadata"]["labels"].items()]
