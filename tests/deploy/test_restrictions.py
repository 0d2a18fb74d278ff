"""What pods may do, whom they reach, and what they are given."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import (
    ALL,
    README,
    RENDERED,
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
    assert outward == {"dns"} | ({"normstats-database"} if which == "overlays/postgres" else set())
    for spec in policies.values():
        for rule in [*spec.get("ingress", ()), *spec.get("egress", ())]:
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")
