"""The HTTP port, before those who have no token: they take neither its memory nor its place."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import normstats
from tests.certificates import Authority
from tests.faults.conftest import Promise
from tests.faults.procfs import Process
from tests.faults.silent import KINDS, held
from tests.faults.sizes import sized
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

MIB = 1 << 20
GROWTH, LATE = 64, 0.1  # MiB; seconds
TOKEN = "token-of-the-robot"
CALLS = 200
# What else the machine does makes some calls late; strangers would make them late each time.
ATTEMPTS = 3


class Site:
    """A server with credentials, and a caller who has a token."""

    def __init__(self, folder: Path, *, encrypted: bool) -> None:
        credentials = folder / "credentials.toml"
        credentials.write_text(stanza("robot", "admin", "robot/", TOKEN))
        flags = ["--credentials", str(credentials)]
        self.tls: ssl.SSLContext | None = None
        if encrypted:
            authority = Authority(folder)
            pair = authority.issue("server", "127.0.0.1")
            flags += ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
            self.tls = ssl.create_default_context(cafile=str(authority.path))
        self.server = ServerProcess(folder, *flags).start()
        self.ca = authority.path if encrypted else None

    def connect(self) -> http.client.HTTPConnection:
        """A connection of the caller's."""
        host, _, port = self.server.http.removeprefix("http://").rpartition(":")
        if self.tls is None:
            return http.client.HTTPConnection(host, int(port), timeout=10)
        return http.client.HTTPSConnection(host, int(port), timeout=10, context=self.tls)

    def call(self, connection: http.client.HTTPConnection) -> None:
        """A call by it."""
        connection.request("GET", "/api/GetDevice", headers={"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()

    def client(self) -> normstats.Client:
        """The same caller, by gRPC."""
        return normstats.connect(self.server.target, token=TOKEN, tls=normstats.TLS(self.ca) if self.ca else False)


@pytest.fixture(scope="module", params=["plain", "TLS"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp(request.param), encrypted=request.param == "TLS")
    yield made
    made.server.stop()


def p99(call: Callable[[], object], times: int = CALLS) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.quantiles(seconds, n=100)[98]


@pytest.mark.parametrize("kind", KINDS)
@sized("count", 1_000, 5_000)
@pytest.mark.timeout(300)
def test_connections_of_strangers(site: Site, promise: Promise, kind: str, count: int) -> None:
    def anew() -> None:
        connection = site.connect()
        site.call(connection)
        connection.close()

    with contextlib.closing(site.connect()) as kept:
        site.call(kept)
        anew()
        alone = max(p99(lambda: site.call(kept)), p99(anew))
    process = Process(site.server)
    before = process.memory_bytes
    process.forget_peak()
    with held(site.server, count, kind), contextlib.closing(site.connect()) as kept:
        site.call(kept)
        for _ in range(ATTEMPTS):
            slow_kept, slow_anew = p99(lambda: site.call(kept)), p99(anew)
            if max(slow_kept, slow_anew) < LATE:
                break
        grown = (process.peak_bytes - before) / MIB
    seen = (
        f"RSS + {grown:.0f} MiB, p99 {slow_kept * 1e3:.0f} ms, with a new connection {slow_anew * 1e3:.0f} ms; without "
        f"strangers {alone * 1e3:.0f} ms"
    )
    assert grown < GROWTH, seen
    assert max(slow_kept, slow_anew) < LATE + alone, seen
    assert "Traceback" not in site.server.log()
    promise(f"HTTP: {count} connections, {kind}", f"RSS + {GROWTH} MiB, a caller's p99 < {LATE * 1e3:.0f} ms", seen)
