"""The base's pod runs as it would in a cluster: as user 10001, on a read-only root, with its own volumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from normstats.cli.app import cli
from tests.certificates import Authority
from tests.deploy.kernels import kernels
from tests.deploy.kubelet import Pod
from tests.deploy.manifests import ROOT, mounted, server, settings_files

NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
CALL = """
import normstats
client = normstats.connect("127.0.0.1:50051", tls=normstats.TLS("{ca}", server_name="normstats.normstats"))
client.create("robot/obs", normstats.Standardize(2)).update([[1.0, 2.0], [3.0, 4.0]])
print(client.get("robot/obs").stats().count)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
def test_it_serves_takes_a_contribution_and_stops_on_a_read_only_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # it would be written to that root
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare may not make namespaces here")
    if any(ROOT.is_relative_to(path) for path in mounted("base")):
        pytest.skip("a volume of the pod's would hide this checkout")
    authority = Authority(tmp_path)
    pair = authority.issue("server", "normstats.normstats")
    files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.path}
    credentials = tmp_path / "credentials.toml"
    new = ["--json", "token", "new", "--scope", "write", "--name", "robots", "--file", str(credentials)]
    token = json.loads(CliRunner().invoke(cli, new, catch_exceptions=False).output)["token"]
    read = {f"/etc/normstats/tls/{name}": file.read_text() for name, file in files.items()}
    read |= {"/etc/normstats/credentials/credentials.toml": credentials.read_text()} | settings_files("base")
    volumes: dict[str, dict[str, str] | None] = {
        path: {Path(file).name: text for file, text in read.items() if file.startswith(f"{path}/")} or None
        for path in mounted("base")
    }
    spec = server("base")["spec"]
    container = spec["containers"][0]
    probe, page = container["startupProbe"], container["livenessProbe"]["httpGet"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    variables = {one["name"]: one.get("value", container["resources"]["limits"]["cpu"]) for one in container["env"]}
    (initial,) = spec["initContainers"]
    pod = Pod(
        image={initial["command"][-2]: str(kernels(tmp_path))},
        volumes=volumes,
        initial=initial["command"],
        command=[sys.executable, "-m", "normserver", *container["args"]],
        variables=variables,
        health_port=probe["grpc"]["port"],
        start_seconds=probe["periodSeconds"] * probe["failureThreshold"],
        page=f"{page['scheme'].lower()}://127.0.0.1:{ports[page['port']]}{page['path']}",
        call=["env", f"NORMSTATS_TOKEN={token}", sys.executable, "-c", CALL.format(ca="/etc/normstats/tls/ca.crt")],
    )
    (tmp_path / "pod.json").write_text(json.dumps(pod._asdict()))
    (tmp_path / "root").mkdir()
    command = [*NAMESPACES, sys.executable, "-m", "tests.deploy.kubelet"]
    command += [str(tmp_path / "pod.json"), str(tmp_path / "root")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert (seen["initial"], seen["ready"], seen["page"]) == ("", True, 200), seen["log"]
    assert (seen["called"], seen["code"]) == ("2\n", 0), seen
    assert len(seen["written"]) == 3
    assert all(line.endswith("Read-only file system") for line in seen["written"])
