"""What deploy/ gives to Kubernetes renders, every version of it that is supported takes it, and so does the server.

Tools that are missing are skipped by name: kubectl (with kustomize 5), PyYAML, kubernetes-validate, checkov, hadolint.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import click
import pytest
from click.testing import CliRunner

from normserver import config
from normserver.http import application
from normserver.store import urls
from normstats.cli.app import cli

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
README = (DEPLOY / "README.md").read_text()
RENDERED = ["base", *(f"overlays/{one.name}" for one in sorted((KUSTOMIZE / "overlays").iterdir()))]
EXAMPLES = sorted(one.name for one in (KUSTOMIZE / "examples").iterdir())
ALL = [*RENDERED, *(f"examples/{name}" for name in EXAMPLES)]
OLDEST_AND_NEWEST = re.search(r"Kubernetes (1\.\d+) to (1\.\d+)", README).groups()  # type: ignore[union-attr]
# Kinds that others define, for which Kubernetes has no schema.
OTHERS = ("monitoring.coreos.com/", "cert-manager.io/", "postgresql.cnpg.io/")
WORKLOADS = ("StatefulSet", "Deployment", "Job", "CronJob")
POD_IP = "10.1.2.3"

Object = dict[str, Any]


def tool(name: str) -> str:
    """Where a program is: beside this interpreter, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@functools.cache
def kubectl() -> str:
    found = tool("kubectl")
    told = subprocess.run(
        [found, "version", "--client", "--output", "json"], capture_output=True, text=True, check=True
    )
    version = json.loads(told.stdout).get("kustomizeVersion", "v0")
    if int(version.removeprefix("v").split(".")[0]) < 5:
        pytest.skip(f"kubectl has kustomize {version}; 5 is the oldest that knows what is used here")
    return found


@functools.cache
def text_of(which: str) -> str:
    """An overlay rendered, or an example as it is."""
    if which.startswith("examples/"):
        return (KUSTOMIZE / which).read_text()
    made = subprocess.run([kubectl(), "kustomize", str(KUSTOMIZE / which)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not made.stderr, "kubectl warns"
    return made.stdout


@functools.cache
def objects(which: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text_of(which)) if one]


def pod(workload: Object) -> Object:
    spec = workload["spec"]
    template: Object = (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]
    return template


def pods(which: str) -> list[Object]:
    return [pod(one) for one in objects(which) if one["kind"] in WORKLOADS]


def server(which: str) -> Object:
    """The template of the server's pods; its first container is the server."""
    return pod(workload_of(which))


def workload_of(which: str) -> Object:
    (found,) = (one for one in objects(which) if one["kind"] in ("StatefulSet", "Deployment"))
    return found


def mounted(which: str) -> dict[str, Object]:
    """What the server has mounted, by path."""
    claims = workload_of(which)["spec"].get("volumeClaimTemplates", ())
    volumes = {one["metadata"]["name"]: {"persistentVolumeClaim": {}} for one in claims}
    volumes |= {one["name"]: one for one in server(which)["spec"]["volumes"]}
    mounts = server(which)["spec"]["containers"][0]["volumeMounts"]
    return {one["mountPath"]: volumes[one["name"]] for one in mounts}


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], config.Settings]:
    """What the server itself makes of an overlay's command line, variables and file of settings."""
    for name in [name for name in os.environ if name.startswith("NORMSTATS_")]:
        monkeypatch.delenv(name)

    def load(which: str) -> config.Settings:
        container = server(which)["spec"]["containers"][0]
        for variable in container["env"]:
            if variable["name"].startswith("NORMSTATS_"):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                value = "postgresql://user:password@normstats-db-rw:5432/normstats" if secret else variable["value"]
                monkeypatch.setenv(variable["name"], value)
        maps = {one["metadata"]["name"]: one["data"] for one in objects(which) if one["kind"] == "ConfigMap"}
        for path, volume in mounted(which).items():
            if "configMap" in volume:
                folder = tmp_path / path.lstrip("/")
                folder.mkdir(parents=True)
                for name, text in maps[volume["configMap"]["name"]].items():
                    (folder / name).write_text(text)
        arguments = [one.replace("$(POD_IP)", POD_IP) for one in container["args"]]
        assert not any("$(" in one for one in arguments)
        return config.load([one.replace("--config=", f"--config={tmp_path}") for one in arguments])

    return load


@pytest.mark.parametrize("which", RENDERED)
def test_each_overlay_is_one_server_in_one_namespace(which: str) -> None:
    found = objects(which)
    assert len({(one["kind"], one["metadata"]["name"]) for one in found}) == len(found)
    assert {one["metadata"].get("namespace", "") for one in found if one["kind"] != "Namespace"} == {"normstats"}
    assert {"ServiceAccount", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {one["kind"] for one in found}
    assert server(which)["spec"]["containers"][0]["name"] == "normstats"


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed"
)
@pytest.mark.parametrize("version", OLDEST_AND_NEWEST)
@pytest.mark.parametrize("which", ALL)
def test_the_oldest_and_the_newest_kubernetes_take_it(which: str, version: str) -> None:
    import kubernetes_validate

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


def test_the_dockerfile_copies_what_is_there_and_pins_what_it_fetches() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    let_through = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {one for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for one in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / one).exists() for one in copied)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    names = [name for _, name in stages]
    assert {"cpu", "cuda"} < set(names)
    assert all(image in names or re.fullmatch(r"python:\$\{PYTHON\}-(slim-)?bookworm", image) for image, _ in stages)
    assert set(re.findall(r"--from=(\S+)", text)) <= set(names)
    assert re.search(r"^ARG PYTHON=3\.11\.\d+$", text, re.MULTILINE), "the CPU build of torch is pinned for 3.11 alone"
    for install in re.findall(r"pip install ([^&\n]+)", text):
        assert "--require-hashes --only-binary :all:" in install or install.split() == [
            "--no-deps",
            "--no-build-isolation",
            ".",
        ]
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if re.search(r" AS (cpu|cuda)$", stage.splitlines()[0]):
            assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE)
            assert re.search(r'^ENTRYPOINT \["normstats", "serve"\]$', stage, re.MULTILINE)


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
    pages = {route.path for route in application(None, str, str, bool).routes}  # type: ignore[arg-type, attr-defined]
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
    image = dict(re.findall(r"(\w+)=(/\S+)", (DEPLOY / "Dockerfile").read_text().split(" AS cuda\n")[1]))
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
    scalers = [one for one in objects(which) if one["kind"] == "HorizontalPodAutoscaler"]
    if loaded.store.startswith("sqlite"):
        assert (workload["kind"], workload["spec"]["replicas"], scalers) == ("StatefulSet", 1, [])
        access = "ReadWriteOnce" if which == "overlays/dev" else "ReadWriteOncePod"
        assert workload["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == [access]
    else:
        (scaler,) = scalers
        assert (workload["kind"], scaler["spec"]["minReplicas"]) == ("Deployment", 3)
        assert "replicas" not in workload["spec"], "every apply would undo what the autoscaler did"
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == (workload["kind"], workload["metadata"]["name"])
        assert loaded.advertise == f"{POD_IP}:{config.split_address(loaded.listen)[1]}"


@pytest.mark.parametrize("which", ALL)
def test_every_container_has_all_that_the_restricted_profile_asks_for(which: str) -> None:
    for template in pods(which):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False, "a Service normstats would make variables NORMSTATS_..."
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"configMap", "secret", "emptyDir", "persistentVolumeClaim"} >= {
            kind for volume in spec["volumes"] for kind in volume if kind != "name"
        }
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert container["securityContext"] == {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"][
                "limits"
            ].keys()
            assert "hostPort" not in str(container.get("ports"))
            named = {mount["name"] for mount in container["volumeMounts"]}
            assert named <= {volume["name"] for volume in spec["volumes"]} | {*_claim_templates()}


@pytest.mark.parametrize("which", ALL)
def test_whatever_is_referred_to_is_made_here_or_told_of(which: str) -> None:
    made = {(one["kind"], one["metadata"]["name"]) for name in (which, "base") for one in objects(name)}
    for path, value in walk(objects(which)):
        if not path or not isinstance(value, dict):
            continue
        if path[-1] == "configMap":
            assert ("ConfigMap", value["name"]) in made
        if path[-1] in ("secret", "secretKeyRef", "credentials"):
            name = value.get("secretName", value.get("name"))
            assert f"`{name}`" in README, f"README tells nobody how to make the Secret {name}"
            keys = [value["key"]] if "key" in value else [item["key"] for item in value.get("items", ())]
            assert all(key in README for key in keys)
        if path[-1] == "persistentVolumeClaim":
            claims = {f"{one}-normstats-0" for one in _claim_templates()} | {"normstats-backups"}
            assert value["claimName"] in claims
        if "serviceAccountName" in value:
            assert ("ServiceAccount", value["serviceAccountName"]) in made


def _claim_templates() -> list[str]:
    return [one["metadata"]["name"] for one in workload_of("base")["spec"]["volumeClaimTemplates"]]


@pytest.mark.parametrize("which", RENDERED)
def test_what_selects_pods_selects_the_servers(which: str) -> None:
    labels, found = server(which)["metadata"]["labels"], objects(which)
    workload = workload_of(which)
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for one in found:
        if one["kind"] == "Service":
            assert one["spec"]["selector"].items() <= labels.items()
        if one["kind"] == "PodDisruptionBudget":
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        if one["kind"] == "NetworkPolicy":
            assert one["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    if workload["kind"] == "StatefulSet":
        assert ("Service", workload["spec"]["serviceName"]) in {(one["kind"], one["metadata"]["name"]) for one in found}


@pytest.mark.parametrize("which", RENDERED)
def test_nothing_comes_in_or_goes_out_but_what_a_policy_allows(which: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects(which) if one["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    inward = {name for name, spec in policies.items() if spec.get("ingress")}
    outward = {name for name, spec in policies.items() if spec.get("egress")}
    assert inward == {"normstats-clients", "normstats-metrics"}
    assert outward == {"dns"} | ({"normstats-database"} if which == "overlays/postgres" else set())
    for spec in policies.values():
        for rule in [*spec.get("ingress", ()), *spec.get("egress", ())]:
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")


def _selected(found: list[Object], kind: str, labels: dict[str, str]) -> list[Object]:
    return [one for one in found if one["kind"] == kind and labels.items() <= one["metadata"]["labels"].items()]


def test_the_example_certificate_is_for_every_name_that_is_called() -> None:
    (names,) = (one["spec"]["dnsNames"] for one in objects("examples/certificate.yaml") if "dnsNames" in one["spec"])
    for service in (one for one in objects("base") if one["kind"] == "Service"):
        name = service["metadata"]["name"]
        assert {name, f"{name}.normstats", f"{name}.normstats.svc", f"{name}.normstats.svc.cluster.local"} <= set(names)
    (monitor,) = (one for one in objects("overlays/monitoring") if one["kind"] == "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["tlsConfig"]["serverName"] in names


def test_the_example_database_is_the_one_that_the_overlay_lets_its_servers_reach() -> None:
    (cluster,) = (one for one in objects("examples/database.yaml") if one["kind"] == "Cluster")
    (policy,) = (one for one in objects("overlays/postgres") if one["metadata"]["name"] == "normstats-database")
    (rule,) = policy["spec"]["egress"]
    assert rule["to"] == [{"podSelector": {"matchLabels": {"cnpg.io/cluster": cluster["metadata"]["name"]}}}]
    env = server("overlays/postgres")["spec"]["containers"][0]["env"]
    (store,) = (one["valueFrom"]["secretKeyRef"] for one in env if one["name"] == "NORMSTATS_STORE")
    assert store == {"name": f"{cluster['metadata']['name']}-app", "key": "uri"}


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


def test_the_shell_of_the_backup_can_be_parsed() -> None:
    (cron,) = (pod(one)["spec"]["containers"][0] for one in objects("examples/backup.yaml") if one["kind"] == "CronJob")
    assert cron["command"] == ["sh", "-euc"]
    subprocess.run(["sh", "-n"], input=cron["args"][0], text=True, check=True)


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
    command = [kubectl(), "kustomize", str(tmp_path / "mine")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    found = [one for one in yaml.safe_load_all(made.stdout) if one]
    (spec,) = (pod(one)["spec"] for one in found if one["kind"] in WORKLOADS)
    images = {container["image"] for container in [*spec["initContainers"], *spec["containers"]]}
    assert images == {"ghcr.io/you/normstats@sha256:..."}
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "ServiceMonitor" in {one["kind"] for one in found}


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (DEPLOY / target).exists(), target
    for path in re.findall(r"deploy/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path
