"""No caller takes the places of others: streams, calls and connections are shared out by identity (TLS, mTLS)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.certificates import Authority
from tests.contract import create, described, refused, told_by
from tests.server.test_access import Site, stanza
from tests.server_process import ServerProcess

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LIMIT, SHARE = 280, 70  # of streams and of connections
NAME = "robot/obs"
OWN = {"small": ("max_streams = 3", "max_connections = 2", "max_calls = 1")}


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    authority = Authority(folder)
    pair = authority.issue("server", "127.0.0.1", "localhost")
    callers = ("greedy", "other", "small")
    tokens = {name: f"normstats_{name}" for name in callers}
    file = folder / "credentials.toml"
    file.write_text("\n".join(stanza(name, "admin", "", tokens[name], *OWN.get(name, ())) for name in callers))
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--credentials", str(file)]
    flags += ["--max-streams", str(LIMIT), "--max-connections", str(LIMIT)]
    if request.param == "mTLS":
        flags += ["--tls-client-ca", str(authority.path)]
    server = ServerProcess(folder, *flags).start()
    found = Site(server, authority, tokens, request.param == "mTLS")
    with found.channel("other") as channel:
        stub = NormalizationServiceStub(channel)
        spec = spec_wire.to_proto(specs.Standardize(4))
        stub.CreateNormalizer(
            pb.CreateNormalizerRequest(name=NAME, spec=spec), metadata=found.metadata("other"), timeout=30
        )
    yield found
    server.stop()


class Caller:
    """Somebody with channels of his own."""

    def __init__(self, site: Site, name: str, stack: ExitStack) -> None:
        self._site = site
        self._name = name
        self._stack = stack

    def stub(self) -> NormalizationServiceStub:
        """On a connection of its own."""
        return NormalizationServiceStub(self._stack.enter_context(self._site.channel(self._name)))

    def device(self, stub: NormalizationServiceStub) -> None:
        """A short call."""
        stub.GetDevice(pb.GetDeviceRequest(), metadata=self._site.metadata(self._name), timeout=10)

    def watch(self, stub: NormalizationServiceStub) -> Any:
        """A watcher that has been answered once."""
        call = stub.WatchRunningStats(
            pb.WatchRunningStatsRequest(normalizer=NAME), metadata=self._site.metadata(self._name), timeout=60
        )
        self._stack.callback(call.cancel)
        next(call)
        return call


@pytest.fixture
def caller(site: Site) -> Iterator[Callable[[str], Caller]]:
    with ExitStack() as stack:
        yield lambda name: Caller(site, name, stack)


def reason(call: Callable[..., Any], *arguments: Any) -> str:
    """Why a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    told = told_by(caught.value)
    assert told.code is EXHAUSTED
    return told.reason


def outcome(call: Callable[..., Any], *arguments: Any) -> str:
    """OK, or why a call is refused."""
    try:
        call(*arguments)
    except grpc.RpcError as error:
        return told_by(error).reason
    return "OK"


def until_let_in(call: Callable[..., Any], *arguments: Any) -> None:
    deadline = time.monotonic() + 10
    while outcome(call, *arguments) != "OK":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_identity_has_a_quarter_of_all_streams_and_others_theirs(caller: Callable[[str], Caller]) -> None:
    greedy, other = caller("greedy"), caller("other")
    one, two = greedy.stub(), greedy.stub()
    watchers = [greedy.watch(stub) for stub in (one, two) for _ in range(SHARE // 2)]
    assert reason(greedy.watch, one) == "STREAM_LIMIT"
    assert reason(greedy.watch, greedy.stub()) == "STREAM_LIMIT"
    greedy.device(one)
    other.watch(other.stub())
    watchers[0].cancel()
    until_let_in(greedy.watch, two)


def test_one_identity_has_a_quarter_of_all_connections_and_others_theirs(caller: Callable[[str], Caller]) -> None:
    greedy, other = caller("greedy"), caller("other")
    until_let_in(greedy.device, greedy.stub())
    # Those of the test before may have been closed just now, which is noticed within a second.
    time.sleep(1.5)
    stubs = [greedy.stub() for _ in range(SHARE)]
    told = [outcome(greedy.device, stub) for stub in stubs]
    assert told == ["OK"] * (SHARE - 1) + ["CONNECTION_LIMIT"]
    assert reason(greedy.device, greedy.stub()) == "CONNECTION_LIMIT"
    greedy.device(stubs[0])
    other.device(other.stub())


def test_an_identity_may_have_limits_of_its_own(site: Site, caller: Callable[[str], Caller]) -> None:
    small = caller("small")
    one, two = small.stub(), small.stub()
    for stub in (one, two, two):
        small.watch(stub)
    assert reason(small.watch, one) == "STREAM_LIMIT"
    with site.channel("small") as third:
        assert reason(small.device, NormalizationServiceStub(third)) == "CONNECTION_LIMIT"


def test_an_identity_makes_no_more_calls_at_once_than_its_share(site: Site, caller: Callable[[str], Caller]) -> None:
    small = caller("small")
    stub = small.stub()
    until_let_in(small.device, stub)  # within a second of the end of others' connections
    x = np.ones((2**17, 4), np.float32)
    request = pb.NormalizeRequest(spec=spec_wire.to_proto(specs.LayerNorm(4)), input=described(x), data=x.tobytes())

    def normalize(_: int) -> str:
        return outcome(lambda: stub.Normalize(request, metadata=site.metadata("small"), timeout=30))

    with ThreadPoolExecutor(4) as pool:
        deadline = time.monotonic() + 20
        seen: set[str] = set()
        while not {"OK", "CALL_LIMIT"} <= seen:
            seen |= set(pool.map(normalize, range(8)))
            assert time.monotonic() < deadline, seen
    assert seen == {"OK", "CALL_LIMIT"}
    assert normalize(0) == "OK"


def test_streams_for_everybody_have_a_few_places_of_their_own(site: Site, caller: Callable[[str], Caller]) -> None:
    with ExitStack() as stack:
        stubs = [health_pb2_grpc.HealthStub(stack.enter_context(site.channel("other"))) for _ in range(3)]
        calls = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for stub in stubs for _ in range(10)]
        stack.callback(lambda: [call.cancel() for call in calls])
        told = [outcome(next, call) for call in calls]
        assert (told.count("OK"), told.count("STREAM_LIMIT")) == (16, 14)
        assert stubs[0].Check(health_pb2.HealthCheckRequest(), timeout=10).status
        other = caller("other")
        other.watch(other.stub())


def test_without_credentials_an_address_has_a_quarter(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--max-streams", str(LIMIT)).start()
    try:
        with grpc.insecure_channel(server.target) as channel:
            stub = NormalizationServiceStub(channel)
            create(stub, NAME, specs.Standardize(4))
            request = pb.WatchRunningStatsRequest(normalizer=NAME)
            calls = [stub.WatchRunningStats(request) for _ in range(SHARE)]
            for call in calls:
                next(call)
            told = refused(stub.WatchRunningStats, request)
            assert (told.code, told.reason) == (EXHAUSTED, "STREAM_LIMIT")
            assert told.sentence.startswith("127.0.0.1 has 70 streams open")
            for call in calls:
                call.cancel()
    finally:
        server.stop()
