"""Callers without credentials, silent or watching health, take little memory and nobody's place, over TLS and mTLS."""

from __future__ import annotations

import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import normstats
from normserver.guard import MAX_SILENT
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.certificates import Authority
from tests.contract import described
from tests.faults.conftest import Promise
from tests.faults.http2 import PREFACE, SETTINGS, frame
from tests.faults.load import wait_until
from tests.faults.procfs import Process
from tests.faults.silent_grpc import attacking
from tests.faults.sizes import sized
from tests.server.test_access import Site, stanza
from tests.server_process import ServerProcess

MIB = 1 << 20
GROWTH = 64  # MiB
# At full size, and in a few seconds beside other tests.
FULL, SLOWEST_SECONDS, SLOWEST_AT_SMALL_SECONDS = 4_000, 0.1, 0.5
X = np.ones((4, 8), np.float32)
REQUEST = pb.NormalizeRequest(spec=spec_wire.to_proto(specs.LayerNorm(8)), input=described(X), data=X.tobytes())
# Of one address, of all that watch health.
PUBLIC_STREAMS = 16


class Guarded:
    """A server, its callers and its memory before anybody attacked it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process = Process(site.server)
        self.channel = site.channel("worker")
        for _ in range(200):
            self.call(self.channel)
        self.before_bytes = self.process.memory_bytes
        self.descriptors = self.process.descriptors

    def call(self, channel: grpc.Channel) -> float:
        """A proper call; returns how long it took."""
        started = time.perf_counter()
        metadata = self.site.metadata("worker")
        NormalizationServiceStub(channel).Normalize(REQUEST, metadata=metadata, timeout=30)
        return time.perf_counter() - started

    def slowest_seconds(self) -> tuple[float, float]:
        """The slowest hundredth of calls on the connection that was open before, and the slowest on a new one."""
        old = sorted(self.call(self.channel) for _ in range(200))
        new = []
        for _ in range(50):
            with self.site.channel("worker") as channel:
                new.append(self.call(channel))
        return old[-2], max(new)

    def grown(self) -> float:
        """MiB that it has more than before anybody attacked it."""
        return (self.process.memory_bytes - self.before_bytes) / MIB

    def open_streams(self, method: str) -> int:
        context = ssl.create_default_context(cafile=str(self.site.authority.path))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        address = self.site.server.http.replace("http://", "https://")
        asked = urllib.request.Request(f"{address}/metrics", headers={"Authorization": "Bearer normstats_worker"})
        page = urllib.request.urlopen(asked, context=context, timeout=10).read().decode()
        found = re.search(rf'normstats_open_streams{{method="{method}"}} (\d+)', page)
        return 0 if found is None else int(found[1])


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    authority = Authority(folder)
    pair = authority.issue("server", "127.0.0.1", "localhost")
    file = folder / "credentials.toml"
    file.write_text(stanza("worker", "read", "", "normstats_worker"))
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--credentials", str(file)]
    if request.param == "mTLS":
        flags += ["--tls-client-ca", str(authority.path)]
    server = ServerProcess(folder, *flags, "--health", "127.0.0.1:0").start()
    found = Guarded(Site(server, authority, {"worker": "normstats_worker"}, request.param == "mTLS"))
    yield found
    found.channel.close()
    server.stop()


def slowest_allowed(count: int) -> float:
    """The slowest hundredth of calls that is allowed while so many are open."""
    return SLOWEST_SECONDS if count >= FULL else SLOWEST_AT_SMALL_SECONDS


def is_within_budget(guarded: Guarded) -> bool:
    return guarded.process.descriptors <= guarded.descriptors + MAX_SILENT + 8


@sized("connections", 1_000, 5_000)
@pytest.mark.parametrize("kind", ["tcp", "hello", "tls", "settings"])
@pytest.mark.timeout(300)
def test_silent_connections(guarded: Guarded, promise: Promise, kind: str, connections: int) -> None:
    with attacking(guarded.site.server.target, f"{kind}:{connections}") as said:
        wait_until(lambda: is_within_budget(guarded), 10.0)
        wait_until(lambda: guarded.grown() < GROWTH, 10.0)
        old, new = guarded.slowest_seconds()
        grown = guarded.grown()
        assert is_within_budget(guarded)
    assert grown < GROWTH
    assert old < slowest_allowed(connections)
    promise(
        f"{connections} silent connections ({kind})",
        f"RSS + {GROWTH} MiB at most, p99 < 100 ms",
        f"{said}; RSS + {grown:.0f} MiB, p99 {old * 1e3:.0f} ms, of new connections {new * 1e3:.0f} ms at most",
    )


@sized("streams", 500, 4_200)
@pytest.mark.timeout(300)
def test_streams_of_health(guarded: Guarded, promise: Promise, streams: int) -> None:
    """With silent connections beside them: whoever has a token sees nothing of either."""
    if guarded.site.mtls:
        pytest.skip("mTLS: nobody without a certificate opens a stream")
    with attacking(guarded.site.server.target, f"settings:{streams}", f"health:{streams}") as said:
        wait_until(lambda: is_within_budget(guarded), 10.0)
        old, new = guarded.slowest_seconds()
        grown, watching = guarded.grown(), guarded.open_streams("Watch")
    assert watching <= PUBLIC_STREAMS
    assert grown < GROWTH
    assert old < slowest_allowed(streams)
    promise(
        f"{streams} streams of Health.Watch and as many silent connections",
        f"{PUBLIC_STREAMS} streams, RSS + {GROWTH} MiB at most, p99 < 100 ms",
        f"{said}; {watching} streams, RSS + {grown:.0f} MiB, p99 {old * 1e3:.0f} ms, "
        f"of new connections {new * 1e3:.0f} ms at most",
    )


@sized("connections", 1_000, 5_000)
@pytest.mark.timeout(120)
def test_silent_connections_to_the_port_of_health(guarded: Guarded, promise: Promise, connections: int) -> None:
    with attacking(guarded.site.server.health, f"tcp:{connections}"):
        wait_until(lambda: is_within_budget(guarded), 10.0)
        took = []
        for number in range(20):
            started = time.perf_counter()
            with grpc.insecure_channel(guarded.site.server.health, [("normstats.test", number)]) as channel:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            took.append(time.perf_counter() - started)
        grown = guarded.grown()
    assert grown < GROWTH
    promise(
        f"{connections} silent connections to --health",
        f"RSS + {GROWTH} MiB at most, probes are answered",
        f"RSS + {grown:.0f} MiB, the slowest of 20 probes {max(took) * 1e3:.0f} ms",
    )


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_silent_connections_by_a_socket_are_closed_and_callers_go_on(tmp_path: Path, promise: Promise) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        with (
            socket.socket(socket.AF_UNIX) as silent,
            normstats.connect(server.target, shared_memory=True) as sharing,
            normstats.connect(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as idle,
        ):
            silent.settimeout(80)
            silent.connect(server.target.removeprefix("unix:"))
            silent.sendall(PREFACE + frame(SETTINGS, 0, 0))
            assert idle.device().device == "cpu"
            array = sharing.empty(X.shape, np.float32)
            array[:] = X
            expected = sharing.normalize(array, normstats.LayerNorm(8))
            started = time.monotonic()
            while silent.recv(1 << 16):
                pass
            took = time.monotonic() - started
            assert idle.device().device == "cpu"
            assert np.array_equal(sharing.normalize(array, normstats.LayerNorm(8)), expected)
        assert 50 < took < 75
        promise("A silent connection by a socket", "closed after 60 s", f"closed after {took:.0f} s")
    finally:
        server.stop()


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_silent_connections_are_closed_after_a_minute(guarded: Guarded, promise: Promise) -> None:
    with attacking(guarded.site.server.target, "tcp:100", "tls:100", "settings:100"):
        started = time.monotonic()
        wait_until(lambda: guarded.process.descriptors <= guarded.descriptors + 8, 70.0)
        took = time.monotonic() - started
    guarded.call(guarded.channel)
    promise("300 silent connections", "closed after 60 s", f"gone after {took:.0f} s")
