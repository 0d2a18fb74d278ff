"""What a server tells Prometheus: well formed, documented whole, of closed sets; and the memory that it may have."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from google.rpc import code_pb2
from prometheus_client.parser import text_string_to_metric_families

import normstats
from normserver.access.rules import RULES
from normserver.metrics import HTTP_REJECTED, Metrics, memory_limit_bytes
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import update
from tests.deploy.tools import tool
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

DOCUMENTED = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
NORMALIZERS = {"name": ["robot/obs", "robot/nothing"], "snapshot": "monday"}
OPERATOR, GREEDY = ({"authorization": f"Bearer {name}"} for name in ("operator", "greedy"))


class Told(NamedTuple):
    """The kind of a metric, and its labels."""

    kind: str
    labels: frozenset[str]


# What the last call of all is counted as.
LAST = (
    'normstats_calls_total{code="RESOURCE_EXHAUSTED",method="GetDevice"} 2.0',
    'normstats_calls_refused_total{method="GetDevice",reason="RATE_LIMITED"} 2.0',
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """/metrics of a server that nobody has called, the same once everything was called, and /metrics/normalizers."""
    folder = tmp_path_factory.mktemp("metrics")
    file = folder / "credentials.toml"
    greedy = stanza("greedy", "read", "", "greedy", "calls_per_second = 0.5")
    file.write_text(stanza("operator", "admin", "", "operator") + greedy)
    server = ServerProcess(folder, "--credentials", str(file)).start()
    try:
        with httpx.Client(base_url=server.http, headers=OPERATOR) as http:
            fresh = http.get("/metrics").raise_for_status().text
            everything(server)
            deadline = time.monotonic() + 10
            page = http.get("/metrics").raise_for_status().text
            while not all(line in page for line in LAST):  # who calls is told before it is counted
                assert time.monotonic() < deadline, page
                page = http.get("/metrics").raise_for_status().text
            yield fresh, page, http.get("/metrics/normalizers", params=NORMALIZERS).raise_for_status().text
    finally:
        server.stop()


def everything(server: ServerProcess) -> None:
    """Something of each kind."""
    x = np.ones((4, 3), np.float32)
    with normstats.connect(server.target, token="operator") as client:
        obs = client.create("robot/obs", specs.Standardize(3))
        obs.update(x)
        obs.snapshot("monday")
        obs.normalize(x)
        obs.normalize(np.ones((200_000, 3), np.float32))
        with obs.stream() as stream:
            stream.update(x)
        with obs.join("alone", 1, timeout=5) as member:
            member.sync(x)
        with pytest.raises(normstats.NotFound):
            client.get("robot/nothing")
    with grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.UpdateRunningStats(update("robot/obs", x, sequence=0), metadata=tuple(OPERATOR.items()))
        stub.GetDevice(pb.GetDeviceRequest(), metadata=tuple(GREEDY.items()))
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetDevice(pb.GetDeviceRequest(), metadata=tuple(GREEDY.items()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def told(page: str) -> dict[str, Told]:
    """What a page tells, by name."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    labels: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = sample.name if sample.name in kinds else family.name
            labels[name] = labels.get(name, frozenset()) | (sample.labels.keys() - {"le"})
    return {name: Told(kind, labels.get(name, frozenset())) for name, kind in kinds.items()}


def documented(*sections: str) -> dict[str, Told]:
    """What docs/metrics.md tells, by name."""
    found = {}
    for section in sections:
        text = DOCUMENTED.split(f"\n## {section}\n")[1].split("\n## ")[0]
        for name, kind, labels, what in re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| (.+) \|$", text, re.MULTILINE):
            assert name not in found
            assert what.strip()
            found[name] = Told(kind, frozenset(labels.replace(",", " ").split()))
    return found


SECTIONS = re.findall(r"^## (.+)$", DOCUMENTED, re.MULTILINE)


def test_the_documentation_lists_exactly_what_a_server_tells(pages: tuple[str, str, str]) -> None:
    *servers, normalizers = SECTIONS
    assert told(pages[2]) == documented(normalizers)
    listed = documented(*servers)
    of_a_gpu = set(re.findall(r"^\| `(\w+)` .* with a GPU: ", DOCUMENTED, re.MULTILINE))
    assert len(of_a_gpu) == 3
    assert told(pages[1]) == {name: one for name, one in listed.items() if name not in of_a_gpu}


def test_it_lists_what_a_server_with_a_gpu_tells_too() -> None:
    metrics = Metrics()
    metrics.watch_device("GPU", "cuda:0", dict.fromkeys(("memory_bytes", "memory_limit_bytes", "busy_ratio"), float))
    names = {family.name for family in metrics.registry.collect() if family.name.startswith("normstats_device_")}
    assert names - {"normstats_device"} == documented("The device").keys() - {"normstats_device_info"}


@pytest.mark.parametrize("which", [0, 1, 2], ids=["fresh", "called", "normalizers"])
def test_promtool_finds_nothing_wrong(pages: tuple[str, str, str], which: int) -> None:
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=pages[which], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_labels_are_words_of_the_programs_own(pages: tuple[str, str, str]) -> None:
    words = {
        "method": {path.rpartition("/")[2] for path in RULES} | {"none"},
        "code": set(code_pb2.Code.keys()),
        "phase": {"queue", "compute", "commit"},
        "outcome": {"merged", "duplicate", "refused", "completed", "failed"},
        "reason": {"RATE_LIMITED", *HTTP_REJECTED},
        "files": {"credentials"},
    }
    samples = [sample for family in text_string_to_metric_families(pages[1]) for sample in family.samples]
    for label, known in words.items():
        found = {sample.labels[label] for sample in samples if label in sample.labels}
        assert found
        assert found <= known
    assert "robot" not in pages[1]


def test_what_has_not_happened_yet_is_counted_as_nothing(pages: tuple[str, str, str]) -> None:
    for line in (
        'normstats_contributions_total{outcome="merged"} 0.0',
        'normstats_contributions_total{outcome="duplicate"} 0.0',
        'normstats_contributions_total{outcome="refused"} 0.0',
        'normstats_rounds_total{outcome="completed"} 0.0',
        'normstats_rounds_total{outcome="failed"} 0.0',
        "normstats_last_commit_timestamp_seconds 0.0",
        "normstats_store_up 1.0",
    ):
        assert line in pages[0].splitlines()


def test_what_is_refused_is_told_by_its_reason(pages: tuple[str, str, str]) -> None:
    refused = re.findall(r"^normstats_calls_refused_total(.*)$", pages[1], re.MULTILINE)
    assert refused == ['{method="GetDevice",reason="RATE_LIMITED"} 2.0']


def test_a_server_has_less_memory_than_it_may_have(pages: tuple[str, str, str]) -> None:
    values = dict(re.findall(r"^(\w+) (\S+)$", pages[1], re.MULTILINE))
    resident, limit = (
        float(values[name]) for name in ("process_resident_memory_bytes", "normstats_memory_limit_bytes")
    )
    assert 2**26 < resident < limit <= 2**50


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/", {}, None),
        ("0::/", {"memory.max": "max\n"}, None),
        # In a container, whose own group is the root there is.
        ("0::/", {"memory.max": "2000000\n"}, 2_000_000),
        # Told where it lies on the machine, and not shown that.
        ("0::/kubepods/pod1/abc", {"memory.max": "2000000\n"}, 2_000_000),
        # A service of systemd's, whose slice has less than it.
        (
            "0::/system.slice/normstats.service",
            {"system.slice/normstats.service/memory.max": "3000000\n", "system.slice/memory.max": "1000000\n"},
            1_000_000,
        ),
        # Version 1: a large number is none.
        ("4:memory:/docker/abc\n3:cpuset:/", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("4:memory:/docker/abc", {"memory/docker/abc/memory.limit_in_bytes": "2000000\n"}, 2_000_000),
        ("4:cpu,cpuacct:/docker/abc", {"memory/docker/abc/memory.limit_in_bytes": "2000000\n"}, None),
    ],
)
def test_the_memory_there_may_be_is_the_least_that_anybody_allows(
    membership: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    (tmp_path / "membership").write_text(f"{membership}\n")
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    found = memory_limit_bytes(tmp_path / "membership", groups)
    assert found == limit if limit else found > 2**27
