"""The contract over HTTP: the same answers, the same door; read-only without a token; for this machine alone."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families

import normstats
from normserver import gateway
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, stats, update
from tests.server.test_access import stanza
from tests.server.test_http import samples
from tests.server_process import ServerProcess

SERVICE = pb.DESCRIPTOR.services_by_name["NormalizationService"]
X = np.array([[1.0, np.pi, 1e-300], [3.0, -2.0, 1e140]])


def get(server: ServerProcess, path: str, token: str = "", **query: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(f"{server.http}{path}", params=query or None, headers=headers, timeout=10)


def post(server: ServerProcess, method: str, body: Any, token: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.http}/api/{method}", content=content, headers=headers, timeout=10)


@contextmanager
def events(server: ServerProcess, method: str, **query: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """What server-sent events say: their data, and what kind they are where that is said."""

    def told(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        kind = ""
        for line in lines:
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield json.loads(line.removeprefix("data: ")) | ({"event": kind} if kind else {})

    with httpx.stream("GET", f"{server.http}/api/{method}", params=query or None, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield told(response.iter_lines())


@pytest.fixture
def seen(stub: NormalizationServiceStub, name: str) -> str:
    """A normalizer that has seen something, and a snapshot of it."""
    create(stub, name, specs.Standardize(3))
    stub.UpdateRunningStats(update(name, X))
    stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer=name, tag="first"))
    stub.UpdateRunningStats(update(name, X + 1))
    return name


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("GetRunningStats", {"normalizer": "NAME"}),
        ("GetRunningStats", {"normalizer": "NAME", "snapshot": "first", "include_state": "true"}),
        ("GetNormalizer", {"name": "NAME"}),
        ("ListNormalizers", {"prefix": "NAME", "page_size": "1"}),
        ("ListNormalizers", {"contains": "NAME"}),
        ("ListSnapshots", {"normalizer": "NAME"}),
        ("CompareSnapshots", {"normalizer": "NAME", "base_tag": "first", "limit": "2"}),
        ("GetDevice", {}),
        ("GetHistory", {"normalizer": "NAME"}),
    ],
)
def test_a_page_says_what_the_call_says(
    server: ServerProcess, stub: NormalizationServiceStub, seen: str, method: str, query: dict[str, str]
) -> None:
    asked = {key: seen if value == "NAME" else value for key, value in query.items()}
    kind = SERVICE.methods_by_name[method]
    typed = {key: True if value == "true" else value for key, value in asked.items()}
    request = json_format.ParseDict(typed, getattr(pb, kind.input_type.name)())
    expected = getattr(stub, method)(request)
    response = get(server, f"/api/{method}", **asked)
    assert response.status_code == 200, response.text
    told = json_format.Parse(response.text, type(expected)())
    if method == "GetHistory":  # a rate falls from call to call
        for one in (*told.producers, *expected.producers):
            one.contributions_per_second = 0
    assert told == expected


def test_what_is_zero_is_told_too(server: ServerProcess, stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(3))
    told = get(server, "/api/GetRunningStats", normalizer=name).json()["stats"]
    assert (told["version"], told["numBatches"], told["frozen"], told["mean"]) == ("1", "0", False, "")


def test_normalizers_are_found_by_a_part_of_their_names(
    server: ServerProcess, stub: NormalizationServiceStub, name: str
) -> None:
    for tail in ("Obs_left", "obs_right", "reward", "100"):
        create(stub, f"{name}/{tail}", specs.Standardize(1))

    def found(part: str) -> list[str]:
        told = get(server, "/api/ListNormalizers", prefix=name, contains=part).json()
        assert int(told["totalCount"]) == len(told["normalizers"])
        return [one["name"].removeprefix(f"{name}/") for one in told["normalizers"]]

    assert found("OBS_") == ["Obs_left", "obs_right"]
    assert found("s_") == ["Obs_left", "obs_right"], "_ stands for itself"
    assert found("1_0") == []
    assert len(found("")) == 4


def test_pages_count_what_is_on_all_of_them(server: ServerProcess, stub: NormalizationServiceStub, name: str) -> None:
    for index in range(5):
        create(stub, f"{name}/{index}", specs.Standardize(1))
    first = get(server, "/api/ListNormalizers", prefix=name, page_size=2).json()
    then = get(server, "/api/ListNormalizers", prefix=name, page_size=2, page_token=first["nextPageToken"]).json()
    assert (first["totalCount"], then["totalCount"], len(then["normalizers"])) == ("5", "5", 2)


@pytest.mark.parametrize(
    ("path", "query", "status", "code"),
    [
        ("/api/GetNormalizer", {"name": "no/such"}, 404, "NOT_FOUND"),
        ("/api/GetNormalizer", {"name": "?"}, 400, "INVALID_ARGUMENT"),
        ("/api/GetNormalizer", {"nam": "x"}, 400, "INVALID_ARGUMENT"),
        ("/api/GetActivity", {"limit": "many"}, 400, "INVALID_ARGUMENT"),
        ("/api/GetActivity", {"limit": "99999999999"}, 400, "INVALID_ARGUMENT"),
        ("/api/WatchActivity", {"limit": "-1"}, 400, "INVALID_ARGUMENT"),
        ("/api/WatchRunningStats", {"normalizer": "no/such"}, 404, "NOT_FOUND"),
        ("/api/Normalize", {}, 404, "NOT_FOUND"),
        ("/api/CreateSnapshot", {}, 404, "NOT_FOUND"),
        ("/api/__init__", {}, 404, "NOT_FOUND"),
        ("/metrics/normalizers", {}, 400, "INVALID_ARGUMENT"),
        ("/metrics/normalizers", {"name": "?"}, 400, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_wrong_is_told(server: ServerProcess, path: str, query: dict[str, str], status: int, code: str) -> None:
    response = get(server, path, **query)
    told = response.json()
    assert (response.status_code, told["code"]) == (status, code), told
    assert set(told) == {"code", "message", "field", "reason"}
    assert told["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"x"', b"null", b'{"normalizer": 1}', b'{"a": 1}', b"{}" + b" " * (1 << 20)]
)
def test_bad_bodies_are_refused(server: ServerProcess, body: bytes) -> None:
    response = post(server, "CreateSnapshot", body)
    assert response.status_code in (400, 403), response.text
    assert get(server, "/healthz").status_code == 200


def test_a_server_that_asks_nobody_who_he_is_lets_its_console_only_read(server: ServerProcess, seen: str) -> None:
    for method in gateway.WRITES:
        key = "name" if method == "UpdateNormalizer" else "normalizer"
        for token in ("", "anything"):
            response = post(server, method, {key: seen}, token)
            assert (response.status_code, response.json()["reason"]) == (403, "READ_ONLY")


def test_every_method_that_pages_offer_is_the_contracts() -> None:
    offered = gateway.READS + gateway.WATCHES + gateway.WRITES
    assert set(offered) < {method.name for method in SERVICE.methods}
    assert {name for name in offered if SERVICE.methods_by_name[name].server_streaming} == set(gateway.WATCHES)


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:9464", "127.0.0.1.attacker.example"])
def test_a_strangers_name_for_this_machine_is_refused(server: ServerProcess, host: str) -> None:
    """A page of attacker.example, whose name then stands for 127.0.0.1, sends this."""
    for path in ("/api/GetActivity", "/api/WatchActivity", "/metrics", "/metrics/normalizers?name=a", "/"):
        response = httpx.get(f"{server.http}{path}", headers={"Host": host})
        assert (response.status_code, response.json()["reason"]) == (403, "OTHER_HOST")
    for here in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert httpx.get(f"{server.http}/api/GetActivity", headers={"Host": here}).status_code == 200


def test_a_change_is_told_within_two_seconds(server: ServerProcess, stub: NormalizationServiceStub, seen: str) -> None:
    with events(server, "WatchRunningStats", normalizer=seen) as told:
        first = next(told)["stats"]
        timer = threading.Timer(0.3, lambda: stub.UpdateRunningStats(update(seen, X)))
        timer.start()
        started = time.monotonic()
        second = next(told)["stats"]
        assert time.monotonic() - started < 2
    assert int(second["version"]) == int(first["version"]) + 1
    expected = stats(stub, seen)
    expected.ClearField("state")
    assert json_format.ParseDict({"stats": second}, pb.WatchRunningStatsResponse()).stats == expected


def test_watchers_over_http_are_counted_and_gone_when_they_go(server: ServerProcess, seen: str) -> None:
    key = "normstats_open_streams", (("method", "WatchRunningStats"),)
    before = samples(server).get(key, 0)
    with events(server, "WatchRunningStats", normalizer=seen) as told:
        next(told)
        assert samples(server)[key] == before + 1
    for _ in range(200):
        if samples(server)[key] == before:
            return
        time.sleep(0.02)
    raise AssertionError("the stream is still open")


def test_who_watches_what_is_deleted_is_told(server: ServerProcess, stub: NormalizationServiceStub, seen: str) -> None:
    with events(server, "WatchRunningStats", normalizer=seen) as told:
        next(told)
        stub.DeleteNormalizer(pb.DeleteNormalizerRequest(name=seen))
        last = list(told)[-1]
    assert (last["event"], last["code"]) == ("error", "NOT_FOUND")


def test_watchers_are_told_that_the_server_stops(own_server: ServerProcess) -> None:
    own_server.start()
    with events(own_server, "WatchActivity") as told:
        next(told)
        stopping = threading.Thread(target=own_server.terminate)
        stopping.start()
        last = list(told)[-1]
        stopping.join()
    assert (last["event"], last["code"], last["reason"]) == ("error", "UNAVAILABLE", "STOPPING")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks who calls."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "credentials.toml"
    scopes = ("read", "write", "admin")
    file.write_text("\n".join(stanza(scope, scope, "robot/", f"token-{scope}") for scope in scopes))
    server = ServerProcess(folder, "--credentials", str(file)).start()
    with normstats.connect(server.target, token="token-admin") as client:
        client.create("robot/obs", normstats.Standardize(3)).update(X)
    yield server
    server.stop()


class TestTokens:
    @pytest.mark.parametrize(
        ("path", "token", "status"),
        [
            ("/api/GetActivity", "", 401),
            ("/api/GetActivity", "unknown", 401),
            ("/api/GetActivity", "token-read", 200),
            ("/api/WatchActivity?limit=-1", "", 401),
            ("/api/WatchActivity?limit=-1", "token-read", 400),
            ("/api/GetRunningStats?normalizer=robot/obs", "token-read", 200),
            ("/api/GetRunningStats?normalizer=other/obs", "token-read", 403),
            ("/api/WatchRunningStats?normalizer=other/obs", "token-read", 403),
            ("/api/ListNormalizers", "token-read", 403),
            ("/api/ListNormalizers?prefix=robot/", "token-read", 200),
            ("/metrics/normalizers?name=robot/obs", "", 401),
            ("/metrics/normalizers?name=robot/obs", "token-read", 200),
            ("/metrics/normalizers?name=robot/obs&name=other/obs", "token-read", 403),
            ("/", "", 200),
            ("/healthz", "", 200),
        ],
    )
    def test_pages_ask_for_one(self, guarded: ServerProcess, path: str, token: str, status: int) -> None:
        response = get(guarded, path, token)
        assert response.status_code == status, response.text
        assert (response.headers.get("www-authenticate") == "Bearer") == (status == 401)

    def test_changes_need_the_scope(self, guarded: ServerProcess) -> None:
        keep = {"normalizer": "robot/obs", "tag": secrets.token_hex(4)}
        freeze = {"name": "robot/obs", "frozen": True}
        told = {
            (method, token): post(guarded, method, body, token and f"token-{token}").status_code
            for method, body in (("CreateSnapshot", keep), ("UpdateNormalizer", freeze))
            for token in ("", "read", "write", "admin")
        }
        assert told == {
            ("CreateSnapshot", ""): 401,
            ("CreateSnapshot", "read"): 403,
            ("CreateSnapshot", "write"): 200,
            ("CreateSnapshot", "admin"): 200,
            ("UpdateNormalizer", ""): 401,
            ("UpdateNormalizer", "read"): 403,
            ("UpdateNormalizer", "write"): 403,
            ("UpdateNormalizer", "admin"): 200,
        }
        assert get(guarded, "/api/GetNormalizer?name=robot/obs", "token-read").json()["normalizer"]["frozen"]
        audited = [line for line in guarded.log().splitlines() if '"frozen"' in line]
        assert '"identity": "admin"' in audited[0]
        assert '"caller": "http:127.0.0.1:' in audited[0]


def test_single_normalizers_are_told_of_by_name(
    server: ServerProcess, stub: NormalizationServiceStub, seen: str, name: str
) -> None:
    create(stub, f"{name}/norm", specs.LayerNorm(3))
    page = get(server, "/metrics/normalizers", name=[seen, f"{name}/norm", "no/such", seen], snapshot="first")
    told = {
        (sample.name.removeprefix("normstats_normalizer_"), sample.labels["name"]): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
    now = stats(stub, seen)
    compared = stub.CompareSnapshots(pb.CompareSnapshotsRequest(normalizer=seen, base_tag="first", limit=1))
    assert told["rows", seen] == 4
    assert told["version", seen] == now.version
    assert told["updated_timestamp_seconds", seen] == pytest.approx(now.update_time.ToMicroseconds() / 1e6)
    assert told["drift_nats", seen] == compared.features[0].symmetric_kl > 0
    assert told["rows", f"{name}/norm"] == 0
    assert ("drift_nats", f"{name}/norm") not in told
    assert "no/such" not in page.text
    assert get(server, "/metrics/normalizers", name=["a"] * 101).status_code == 400


def test_pages_make_no_series_of_names(server: ServerProcess, stub: NormalizationServiceStub, name: str) -> None:
    def look(part: str) -> None:
        for path in ("/api/GetNormalizer", "/metrics/normalizers"):
            get(server, path, name=f"{name}/{part}")
        get(server, f"/api/{part}")

    look("first")
    series = set(samples(server))
    for index in range(30):
        look(str(index))
    assert set(samples(server)) == series


def test_the_console_lets_nothing_else_in(server: ServerProcess) -> None:
    for path in ("/", "/static/console.css"):
        response = get(server, path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert get(server, "/static/../http.py").status_code == 404
    assert get(server, "/static/%2e%2e/http.py").status_code == 404
