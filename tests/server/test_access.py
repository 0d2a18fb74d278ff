"""Who may do what: every RPC there is, asked for by everybody, over TLS and mTLS."""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import normstats
from normserver.access import credentials, rules
from normserver.access.credentials import InvalidCredentials
from normserver.access.grants import Need, Scope
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2
from normstats.wire import spec as spec_wire
from tests.certificates import Authority
from tests.contract import contribution, described, told_by
from tests.server_process import ServerProcess

NAME = "robot/obs"
X = np.arange(6, dtype=np.float32).reshape(2, 3)
OPEN = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
OTHERS = {
    **{path: health_pb2.HealthCheckRequest() for path in OPEN},
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        list_services=""
    ),
}
NOT_IN = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def _normalize(**fields: Any) -> pb.NormalizeRequest:
    return pb.NormalizeRequest(normalizer=NAME, input=described(X), data=X.tobytes(), **fields)


def _update(name: str = NAME) -> pb.UpdateRunningStatsRequest:
    return pb.UpdateRunningStatsRequest(
        producer_id=secrets.token_bytes(16), sequence=1, contributions=[contribution(name, X)]
    )


# A message to each RPC, and the least scope that it takes.
MESSAGES: dict[str, tuple[Message, str]] = {
    "Normalize": (_normalize(), "read"),
    "NormalizeMany": (pb.NormalizeManyRequest(requests=[_normalize()]), "read"),
    "NormalizeManyStream": (pb.NormalizeManyStreamRequest(requests=[_normalize()], id=1), "read"),
    "NormalizeStream": (pb.NormalizeStreamRequest(open=pb.NormalizeStreamRequest.Open(normalizer=NAME)), "read"),
    "ShareMemory": (pb.ShareMemoryRequest(allocate_bytes=1), "read"),
    "UpdateRunningStats": (_update(), "write"),
    "UpdateRunningStatsStream": (
        pb.UpdateRunningStatsStreamRequest(
            update=pb.UpdateRunningStatsStreamRequest.Update(sequence=1, contributions=[contribution(NAME, X)])
        ),
        "write",
    ),
    "SynchronizeStats": (
        pb.SynchronizeStatsRequest(
            join=pb.SynchronizeStatsRequest.Join(group="robot/step", member_id=secrets.token_bytes(16), size=2)
        ),
        "write",
    ),
    "GetRunningStats": (pb.GetRunningStatsRequest(normalizer=NAME), "read"),
    "WatchRunningStats": (pb.WatchRunningStatsRequest(normalizer=NAME), "read"),
    "GetDevice": (pb.GetDeviceRequest(), "read"),
    "GetActivity": (pb.GetActivityRequest(), "read"),
    "WatchActivity": (pb.WatchActivityRequest(), "read"),
    "GetHistory": (pb.GetHistoryRequest(normalizer=NAME), "read"),
    "CreateNormalizer": (pb.CreateNormalizerRequest(name=NAME, spec=resources_pb2.Spec()), "write"),
    "GetNormalizer": (pb.GetNormalizerRequest(name=NAME), "read"),
    "ListNormalizers": (pb.ListNormalizersRequest(prefix="robot/"), "read"),
    "UpdateNormalizer": (pb.UpdateNormalizerRequest(name=NAME), "admin"),
    "DeleteNormalizer": (pb.DeleteNormalizerRequest(name="robot/none"), "admin"),
    "CreateSnapshot": (pb.CreateSnapshotRequest(normalizer=NAME, tag="?"), "write"),
    "ListSnapshots": (pb.ListSnapshotsRequest(normalizer=NAME), "read"),
    "RestoreSnapshot": (pb.RestoreSnapshotRequest(normalizer=NAME, tag="none"), "admin"),
    "DeleteSnapshot": (pb.DeleteSnapshotRequest(normalizer=NAME, tag="none"), "admin"),
    "CompareSnapshots": (pb.CompareSnapshotsRequest(normalizer=NAME, base_tag="none"), "read"),
    "BackUp": (pb.BackUpRequest(), "everything"),
}
SERVICE = pb.DESCRIPTOR.services_by_name["NormalizationService"]
PATHS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods] + sorted(OTHERS)
SCOPES = ("read", "write", "admin", "everything")


class Site(NamedTuple):
    """A server, and how callers reach it. `tokens` are by the names of who has them."""

    server: ServerProcess
    authority: Authority
    tokens: dict[str, str]
    mtls: bool

    def channel(self, caller: str) -> grpc.Channel:
        """A channel for a caller: with a certificate of that name, if the server asks for one."""
        pair = self.authority.issue(f"caller-{caller}", f"{caller}.example") if self.mtls else None
        return grpc.secure_channel(
            self.server.target,
            grpc.ssl_channel_credentials(
                self.authority.path.read_bytes(),
                pair and pair.key.read_bytes(),
                pair and pair.certificate.read_bytes(),
            ),
        )

    def metadata(self, caller: str) -> tuple[tuple[str, str], ...]:
        """What a caller's calls bring: a token, where certificates say nothing."""
        if caller == "nobody" or (self.mtls and caller != "wrong-token"):
            return ()
        return (("authorization", f"Bearer {self.tokens.get(caller, 'normstats_unknown')}"),)


def stanza(name: str, scope: str, prefix: str, token: str, *more: str) -> str:
    lines = [
        "[[identity]]",
        f'name = "{name}"',
        f'grants = [{{ scope = "{scope}", prefix = "{prefix}" }}]',
        f'tokens = ["sha256:{hashlib.sha256(token.encode()).hexdigest()}"]',
        f'certificates = ["{name}.example"]',
        *more,
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    authority = Authority(folder)
    pair = authority.issue("server", "127.0.0.1", "localhost")
    callers = {
        "read": ("read", "robot/"),
        "write": ("write", "robot/"),
        "admin": ("admin", "robot/"),
        "everything": ("admin", ""),
        "other-prefix": ("admin", "other/"),
        "expired": ("admin", ""),
    }
    tokens = {name: f"normstats_{name}" for name in callers}
    file = folder / "credentials.toml"
    expired = {"expired": ("expires = 2020-01-01T00:00:00Z",)}
    file.write_text(
        "\n".join(stanza(name, *grant, tokens[name], *expired.get(name, ())) for name, grant in callers.items())
    )
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--credentials", str(file)]
    if request.param == "mTLS":
        flags += ["--tls-client-ca", str(authority.path)]
    server = ServerProcess(folder, "--reflection", *flags).start()
    yield Site(server, authority, tokens, request.param == "mTLS")
    server.stop()


def code(site: Site, caller: str, path: str) -> grpc.StatusCode:
    """What a caller's call of a method ends with; a stream that goes on is let in."""
    request = OTHERS[path] if path in OTHERS else MESSAGES[path.rpartition("/")[2]][0]
    with site.channel(caller) as channel:
        call = channel.stream_stream(path, type(request).SerializeToString)(
            iter([request]), metadata=site.metadata(caller), timeout=5
        )
        try:
            next(call)
            return grpc.StatusCode.OK
        except StopIteration:
            return grpc.StatusCode.OK
        except grpc.RpcError as error:
            if error.code() in NOT_IN:
                told_by(error)
            return error.code()


@pytest.mark.parametrize("path", PATHS)
def test_only_who_may_is_let_in(site: Site, path: str) -> None:
    if path in OPEN:
        assert {code(site, caller, path) for caller in ("nobody", "wrong-token", "read")} == {grpc.StatusCode.OK}
        return
    assert code(site, "nobody", path) is grpc.StatusCode.UNAUTHENTICATED
    assert code(site, "wrong-token", path) is grpc.StatusCode.UNAUTHENTICATED
    assert code(site, "expired", path) is grpc.StatusCode.UNAUTHENTICATED
    method = path.rpartition("/")[2]
    least = "read" if path in OTHERS else MESSAGES[method][1]
    for index, scope in enumerate(SCOPES):
        let_in = code(site, scope, path) not in NOT_IN
        assert let_in == (index >= SCOPES.index(least)), scope
    named = method not in ("ShareMemory", "GetDevice", "GetActivity", "WatchActivity", "ServerReflectionInfo")
    assert (code(site, "other-prefix", path) is grpc.StatusCode.PERMISSION_DENIED) == named


def test_every_rpc_has_a_rule() -> None:
    assert set(PATHS) == set(rules.RULES) | OPEN


def test_who_has_no_certificate_does_not_connect(site: Site) -> None:
    if not site.mtls:
        pytest.skip("TLS: no certificate is asked for")
    credentials = grpc.ssl_channel_credentials(site.authority.path.read_bytes())
    with grpc.secure_channel(site.server.target, credentials) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_train_needs_write(site: Site) -> None:
    request = _normalize(mode=pb.MODE_TRAIN, producer_id=secrets.token_bytes(16), sequence=1)
    path = f"/{SERVICE.full_name}/Normalize"
    with site.channel("read") as channel:
        call = channel.unary_unary(path, pb.NormalizeRequest.SerializeToString)
        with pytest.raises(grpc.RpcError) as caught:
            call(request, metadata=site.metadata("read"), timeout=5)
    told = told_by(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert told.sentence == "read may not write 'robot/obs'; it is granted: read robot/"


def test_one_forbidden_name_among_many_forbids_all(site: Site) -> None:
    request = pb.UpdateRunningStatsRequest(
        producer_id=secrets.token_bytes(16),
        sequence=1,
        contributions=[contribution(NAME, X), contribution("other/obs", X)],
    )
    with site.channel("write") as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/UpdateRunningStats", type(request).SerializeToString)
        with pytest.raises(grpc.RpcError) as caught:
            call(request, metadata=site.metadata("write"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_metrics_are_for_those_who_may_read(site: Site) -> None:
    address = site.server.http.replace("http://", "https://")
    context = ssl.create_default_context(cafile=str(site.authority.path))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    assert urllib.request.urlopen(f"{address}/healthz", context=context, timeout=5).status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/metrics", context=context, timeout=5)
    assert refused.value.code == 401
    asked = urllib.request.Request(f"{address}/metrics", headers={"Authorization": "Bearer normstats_read"})
    assert b"normstats_calls_total" in urllib.request.urlopen(asked, context=context, timeout=5).read()


def test_the_client_brings_its_token_and_its_certificate(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = site.authority.issue("client", "everything.example")
    tls = normstats.TLS(site.authority.path, *(pair if site.mtls else ()))
    token = None if site.mtls else site.tokens["everything"]
    with normstats.connect(site.server.target, tls=tls, token=token) as client:
        obs = client.create("client/obs", normstats.Standardize(3), exist_ok=True)
        obs.update(X)
        assert obs.normalize(X).shape == X.shape
        assert client.normalize(np.ones((4096, 256), np.float32), normstats.LayerNorm(256)).shape == (4096, 256)
        with obs.stream() as stream:
            stream.update(X)
    monkeypatch.setenv("NORMSTATS_CA", str(site.authority.path))
    if site.mtls:
        monkeypatch.setenv("NORMSTATS_CERT", str(pair.certificate))
        monkeypatch.setenv("NORMSTATS_KEY", str(pair.key))
    else:
        monkeypatch.setenv("NORMSTATS_TOKEN", site.tokens["everything"])
    with normstats.connect(site.server.target) as client:
        assert client.get("client/obs").stats().num_batches == 2


def test_the_client_is_told_what_it_may_not(site: Site) -> None:
    pair = site.authority.issue("reader", "read.example")
    tls = normstats.TLS(site.authority.path, *(pair if site.mtls else ()))
    token = None if site.mtls else (lambda: site.tokens["read"])
    with normstats.connect(site.server.target, tls=tls, token=token) as client:
        with pytest.raises(normstats.PermissionDenied, match="may not write 'robot/new'"):
            client.create("robot/new", normstats.Standardize(3))
        with pytest.raises(normstats.PermissionDenied, match="may not read 'other/obs'"):
            client.normalize(X, "other/obs")


def test_a_token_does_not_travel_unencrypted() -> None:
    with pytest.raises(normstats.InvalidArgument, match="unencrypted"):
        normstats.connect("normstats.example:50051", token="secret")
    normstats.connect("normstats.example:50051", token="secret", tls=False)
    normstats.connect("localhost:50051", token="secret")
    normstats.connect("unix:/run/normstats", token="secret")


class Open(NamedTuple):
    """A server with credentials, on this machine and in plaintext."""

    server: ServerProcess
    file: Path

    def client(self, token: str) -> normstats.Client:
        return normstats.connect(self.server.target, token=token)

    def wait_until(self, holds: Any, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Open]:
    file = tmp_path / "credentials.toml"
    file.write_text(stanza("admin", "admin", "", "admin"))
    server = ServerProcess(tmp_path, "--credentials", str(file), "--log-level", "debug").start()
    yield Open(server, file)
    server.stop()


def test_credentials_are_read_again(open_site: Open) -> None:
    def known(token: str) -> bool:
        with open_site.client(token) as client:
            try:
                client.device()
            except normstats.Unauthenticated:
                return False
            return True

    assert known("admin")
    assert not known("second")
    open_site.file.write_text(stanza("admin", "admin", "", "admin") + stanza("two", "read", "", "second"))
    open_site.wait_until(lambda: known("second"))
    open_site.file.write_text("nonsense")
    open_site.wait_until(lambda: "not read again" in open_site.server.log())
    asked = urllib.request.Request(f"{open_site.server.http}/metrics", headers={"Authorization": "Bearer second"})
    assert b'normstats_files_current{files="credentials"} 0.0' in urllib.request.urlopen(asked, timeout=5).read()
    assert known("second")
    open_site.file.write_text(stanza("two", "read", "", "second"))
    open_site.wait_until(lambda: not known("admin"))
    assert known("second")


def test_certificates_are_read_again(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    pair = first.issue("server", "127.0.0.1")
    server = ServerProcess(tmp_path, "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)).start()
    try:
        with normstats.connect(server.target, tls=first.path) as old:
            assert old.device().device == "cpu"
            second.issue("server", "127.0.0.1")
            deadline = time.monotonic() + 20
            while True:
                with normstats.connect(server.target, tls=second.path, timeout=1) as new:
                    try:
                        assert new.device().device == "cpu"
                        break
                    except (normstats.Unavailable, normstats.DeadlineExceeded):
                        assert time.monotonic() < deadline
            assert old.device().device == "cpu"
    finally:
        server.stop()


def test_rates_hold(open_site: Open) -> None:
    limits = ("calls_per_second = 20",)
    open_site.file.write_text(
        stanza("admin", "admin", "", "admin") + stanza("small", "write", "small/", "small", *limits)
    )

    def known() -> bool:
        with open_site.client("small") as client:
            try:
                client.device()
            except normstats.NormstatsError:
                return False
            return True

    open_site.wait_until(known)
    with open_site.client("small") as client, open_site.client("admin") as admin:
        time.sleep(1)
        started, reasons = time.monotonic(), []
        for _ in range(100):
            try:
                client.device()
            except normstats.ResourceExhausted as error:
                reasons.append(error.reason)
        assert set(reasons) == {"RATE_LIMITED"}
        assert len(reasons) >= 100 - 20 * (time.monotonic() - started + 1) - 1
        for _ in range(50):
            admin.device()


def test_a_stream_beyond_its_rate_is_slowed_and_loses_nothing(open_site: Open) -> None:
    open_site.file.write_text(
        stanza("admin", "admin", "", "admin") + stanza("small", "write", "small/", "small", "calls_per_second = 20")
    )
    with open_site.client("admin") as admin:
        admin.create("small/one", normstats.Standardize(3))
    open_site.wait_until(lambda: "read again" in open_site.server.log())

    def updates(batches: int) -> Iterator[pb.UpdateRunningStatsStreamRequest]:
        yield pb.UpdateRunningStatsStreamRequest(
            open=pb.UpdateRunningStatsStreamRequest.Open(producer_id=secrets.token_bytes(16))
        )
        for sequence in range(1, batches + 1):
            update = pb.UpdateRunningStatsStreamRequest.Update(
                sequence=sequence, contributions=[contribution("small/one", X)]
            )
            yield pb.UpdateRunningStatsStreamRequest(update=update)

    with grpc.insecure_channel(open_site.server.target) as channel:
        call = channel.stream_stream(
            f"/{SERVICE.full_name}/UpdateRunningStatsStream",
            pb.UpdateRunningStatsStreamRequest.SerializeToString,
            pb.UpdateRunningStatsStreamResponse.FromString,
        )
        started = time.monotonic()
        last = list(call(updates(60), metadata=(("authorization", "Bearer small"),), timeout=30))[-1]
    assert last.acknowledged_sequence == 60
    assert time.monotonic() - started > 1.5


def test_who_changed_what_is_in_the_log(open_site: Open) -> None:
    with open_site.client("admin") as client:
        obs = client.create("robot/obs", normstats.Standardize(3))
        obs.update(X)
        obs.snapshot("a")
        obs.freeze()
        obs.restore("a")
        client.delete("robot/obs")
    lines = [json.loads(line) for line in open_site.server.log().splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("identity") == "admin" and line.get("normalizer") == "robot/obs"]
    assert [line["event"] for line in told] == ["created", "snapshot created", "frozen", "restored", "deleted"]
    called = {line["method"]: line for line in lines if line["event"] == "call"}
    assert called["UpdateRunningStats"]["code"] == "OK"
    assert called["UpdateRunningStats"]["identity"] == "admin"
    assert "Bearer" not in open_site.server.log()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[identity]", "Expected"),
        ('[[identity]]\nname = "a\\nb"\ngrants = []', "identity.0.name"),
        ('[[identity]]\nname = "a"\ngrants = [{ scope = "root", prefix = "" }]', "identity.0.grants.0.scope"),
        ('[[identity]]\nname = "a"\ngrants = []\ntokens = ["secret"]', "identity.0.tokens.0"),
        ('[[identity]]\nname = "a"\ngrants = []\ncolour = "red"', "identity.0.colour"),
        ('[[identity]]\nname = "a"\ngrants = []\n[[identity]]\nname = "a"\ngrants = []', "a is there twice"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence_that_tells_no_secret(text: str, told: str) -> None:
    with pytest.raises(InvalidCredentials) as caught:
        credentials.parse(text)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_grant_covers_what_begins_with_its_prefix() -> None:
    known = credentials.parse(stanza("a", "write", "robot/", "t")).with_token("t")
    assert known is not None
    assert known.may(Need(Scope.WRITE, "robot/obs"))
    assert known.may(Need(Scope.READ, "robot/obs"))
    assert known.may(Need(Scope.READ, None))
    assert not known.may(Need(Scope.ADMIN, "robot/obs"))
    assert not known.may(Need(Scope.ADMIN, None))
    assert not known.may(Need(Scope.READ, "robotics/obs"))
    assert not known.may(Need(Scope.READ, ""))
    assert spec_wire.to_proto(specs.Standardize(1)).HasField("standardize")
