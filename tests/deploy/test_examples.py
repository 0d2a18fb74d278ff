"""The examples fit the overlays that they are examples for."""

from __future__ import annotations

import re
import subprocess

from normserver.normalizer_metrics import NormalizerMetrics
from tests.deploy.manifests import objects, of_kind, pod, rules, server


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


def test_the_shell_of_the_backup_can_be_parsed() -> None:
    (cron,) = (pod(one)["spec"]["containers"][0] for one in objects("examples/backup.yaml") if one["kind"] == "CronJob")
    assert cron["command"] == ["sh", "-euc"]
    subprocess.run(["sh", "-n"], input=cron["args"][0], text=True, check=True)


def test_the_example_of_drift_asks_for_the_page_as_a_job_that_the_rules_tell_from_servers() -> None:
    (servers,) = of_kind("overlays/monitoring", "ServiceMonitor")
    (monitor,) = objects("examples/drift.yaml")
    assert monitor["spec"]["selector"] == servers["spec"]["selector"]
    (endpoint,), (of_servers,) = monitor["spec"]["endpoints"], servers["spec"]["endpoints"]
    assert {key: endpoint[key] for key in ("port", "scheme", "authorization", "tlsConfig")} == {
        key: of_servers[key] for key in ("port", "scheme", "authorization", "tlsConfig")
    }
    (job,) = (one["replacement"] for one in endpoint["relabelings"] if one["targetLabel"] == "job")
    (excluded,) = {one for rule in rules() for one in re.findall(r'job!~"([^"]+)"', rule["expr"])}
    assert re.fullmatch(excluded, job)
    assert not re.fullmatch(excluded, "normstats-headless"), "the job of servers, by the name of their Service"
    (page,) = (one.path for one in NormalizerMetrics(None).routes)  # type: ignore[arg-type]
    assert endpoint["path"] == page
    assert endpoint["params"].keys() == {"name", "snapshot"}
