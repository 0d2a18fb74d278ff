"""What pods may do, whom they reach, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from normserver import config
from tests.deploy.manifests import (
    ALL,
    README,
    RENDERED,
    Object,
    claim_templates,
    objects,
    pods,
    server,
    walk,
    workload_of,
)


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
            assert named <= {volume["name"] for volume in spec["volumes"]} | {*claim_templates()}


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
            claims = {f"{one}-normstats-0" for one in claim_templates()} | {"normstats-backups"}
            assert value["claimName"] in claims
        if "serviceAccountName" in value:
            assert ("ServiceAccount", value["serviceAccountName"]) in made


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
    more = {"overlays/postgres": {"normstats-database"}, "overlays/traces": {"normstats-traces"}}
    assert outward == {"dns"} | more.get(which, set())
    for spec in policies.values():
        for rule in [*spec.get("ingress", ()), *spec.get("egress", ())]:
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")


def test_names_are_asked_of_whichever_dns_a_cluster_has() -> None:
    (policy,) = (one["spec"] for one in objects("base") if one["metadata"]["name"] == "dns")
    asked = {
        (_destination(to), port["protocol"], port["port"])
        for rule in policy["egress"]
        for to in rule["to"]
        for port in rule["ports"]
    }
    dns = {("kube-system", 53), ("169.254.20.10/32", 53), ("openshift-dns", 5353)}
    assert asked == {(name, protocol, port) for name, port in dns for protocol in ("UDP", "TCP")}


def _destination(to: Object) -> str:
    if "ipBlock" in to:
        return str(to["ipBlock"]["cidr"])
    return str(to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"])


def test_traces_go_where_a_policy_lets_them(settings: Callable[[str], config.Settings]) -> None:
    assert settings("overlays/traces").traces
    env = {one["name"]: one.get("value") for one in server("overlays/traces")["spec"]["containers"][0]["env"]}
    endpoint = urlsplit(env["OTEL_EXPORTER_OTLP_ENDPOINT"])
    (policy,) = (one["spec"] for one in objects("overlays/traces") if one["metadata"]["name"] == "normstats-traces")
    (rule,) = policy["egress"]
    assert [_destination(to) for to in rule["to"]] == [str(endpoint.hostname).split(".")[1]]
    assert rule["ports"] == [{"protocol": "TCP", "port": endpoint.port}]
    assert policy["podSelector"]["matchLabels"].items() <= server("overlays/traces")["metadata"]["labels"].items()


def test_a_bad_image_can_be_replaced_by_applying_a_good_one() -> None:
    """OrderedReady waits for the bad pod to become ready before it replaces it: for ever."""
    assert workload_of("base")["spec"]["podManagementPolicy"] == "Parallel"


def test_a_gpu_is_reached_by_the_runtime_class_that_its_operator_makes() -> None:
    assert server("overlays/gpu")["spec"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in server("base")["spec"]
