"""Two replicas behind a balancer, rolled and killed under load: nobody sees an error, nothing is lost, nothing doubled,
and a new one soon has its share of the calls.
"""

from __future__ import annotations

import asyncio
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import normstats
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.faults.conftest import Promise
from tests.faults.envoy import Envoy
from tests.faults.load import FEATURES, ROWS, SPEC, wait_until
from tests.faults.mixed import Mixed
from tests.faults.sizes import sized
from tests.postgres import database
from tests.server_process import ServerProcess

# Connections end after so many seconds, and what is under way on them has so many more.
AGE_SECONDS, GRACE_SECONDS = 4, 8
# The share of new calls that a new replica has, this long after it began to serve.
SHARE, SHARE_WITHIN_SECONDS = 0.3, AGE_SECONDS + 10
# Over which it is taken.
_WINDOW_SECONDS = 2.0
_OWN_CONNECTIONS = (("grpc.use_local_subchannel_pool", 1),)


class Size(NamedTuple):
    """How often replicas are restarted, and killed."""

    restarts: int
    kills: int


class Way(NamedTuple):
    """How clients get to servers."""

    target: str
    options: tuple[tuple[str, str | int], ...] = ()

    def connect(self) -> normstats.Client:
        """A client with connections of its own."""
        return normstats.connect(self.target, options=[*_OWN_CONNECTIONS, *self.options])

    def connect_aio(self) -> normstats.aio.AsyncClient:
        """The same, of asyncio."""
        return normstats.aio.connect(self.target, options=[*_OWN_CONNECTIONS, *self.options])


SMALL = {"envoy": Size(1, 1)}
FULL = {"envoy": Size(20, 5), "round_robin": Size(4, 2), "connections": Size(4, 2)}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    """Two on one PostgreSQL, whose ports stay theirs."""
    flags = ("--max-connection-age-seconds", str(AGE_SECONDS), "--drain-seconds", str(GRACE_SECONDS))
    folder = tmp_path_factory.mktemp("replicas")
    with database() as url, ThreadPoolExecutor() as pool:
        both = [ServerProcess(folder, *flags, "--health", "127.0.0.1:0", store=url) for _ in range(2)]
        try:
            list(pool.map(ServerProcess.start, both))
            for one in both:
                one.flags = (*flags, "--health", one.health)
            yield both
        finally:
            list(pool.map(ServerProcess.stop, both))


@pytest.fixture(scope="module")
def envoy(replicas: list[ServerProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    before = Envoy(tmp_path_factory.mktemp("envoy"), replicas)
    try:
        yield before.start()
    finally:
        before.stop()


@pytest.fixture
def way(request: pytest.FixtureRequest, replicas: list[ServerProcess], route: str) -> Way:
    """To both: by Envoy that balances calls; by the client, which does so itself; by Envoy that balances connections,
    as a Kubernetes Service does.
    """
    if route == "round_robin":
        return Way("ipv4:" + ",".join(one.target for one in replicas), (("grpc.lb_policy_name", "round_robin"),))
    envoy: Envoy = request.getfixturevalue("envoy")
    return Way(envoy.calls if route == "envoy" else envoy.connections)


@pytest.mark.parametrize(
    ("route", "size"),
    [
        *(pytest.param(route, size, id=f"{route}-small") for route, size in SMALL.items()),
        *(pytest.param(route, size, id=f"{route}-full", marks=pytest.mark.faults) for route, size in FULL.items()),
    ],
)
@pytest.mark.timeout(900)
def test_rolling_change(
    replicas: list[ServerProcess], way: Way, promise: Promise, name: str, route: str, size: Size
) -> None:
    changes = size.restarts + size.kills
    shares: list[float] = []
    took: list[float] = []
    with in_tasks(way) as tasks, Mixed(way.connect, name) as load:
        for number in range(changes):
            changed, other = replicas[number % 2], replicas[1 - number % 2]
            if (number + 1) * size.kills // changes > number * size.kills // changes:
                changed.kill()
            else:
                started = time.monotonic()
                assert changed.terminate() == 0
                assert time.monotonic() - started < GRACE_SECONDS, "nobody is left unanswered until the end"
            seconds, share = until_it_has_its_share(changed.start(), other)
            took.append(seconds)
            shares.append(share)
    seen = load.check(replicas[0].target)
    print(f"{load.told()}; {tasks.result()} in tasks")
    promise(
        f"Rolling change: {route}, {size.restarts} x SIGTERM, {size.kills} x SIGKILL under load",
        f"no caller sees an error, a new one has {SHARE:.0%} of calls within {SHARE_WITHIN_SECONDS} s",
        f"{seen}; {min(shares):.0%} (median {statistics.median(shares):.0%}) after {max(took):.1f} s at most",
    )


def until_it_has_its_share(new: ServerProcess, other: ServerProcess) -> tuple[float, float]:
    """Wait until a new replica has its share of new calls; returns how many seconds that took, and the share."""
    started = time.monotonic()
    samples: deque[tuple[float, int, int]] = deque()
    while True:
        now = time.monotonic() - started
        samples.append((now, ended(new), ended(other)))
        while now - samples[0][0] > _WINDOW_SECONDS + 0.5:
            samples.popleft()
        here, there = (samples[-1][column] - samples[0][column] for column in (1, 2))
        share = here / max(1, here + there)
        if share >= SHARE and now - samples[0][0] >= _WINDOW_SECONDS:
            return now, share
        assert now < SHARE_WITHIN_SECONDS, f"the new replica has {share:.0%} of {here + there} calls after {now:.1f} s"
        time.sleep(0.2)


def test_a_stream_that_opens_while_the_server_stops_is_told_so(own_server: ServerProcess) -> None:
    opening = queue.SimpleQueue[pb.UpdateRunningStatsStreamRequest]()
    with grpc.insecure_channel(own_server.start().target) as channel, ThreadPoolExecutor() as pool:
        stream = NormalizationServiceStub(channel).UpdateRunningStatsStream(iter(opening.get, None), timeout=30)
        wait_until(lambda: 'open_streams{method="UpdateRunningStatsStream"} 1.0' in metrics(own_server), 10)
        stopped = pool.submit(own_server.terminate)
        wait_until(lambda: '"stopping"' in own_server.log(), 10)
        opening.put(pb.UpdateRunningStatsStreamRequest(open={"producer_id": bytes(16)}))
        started = time.monotonic()
        assert next(stream).acknowledged_sequence == 0
        with pytest.raises(grpc.RpcError, match="the server is stopping; resume with another stream"):
            next(stream)
        assert stopped.result() == 0
        assert time.monotonic() - started < 5, "long before --drain-seconds are over"


@sized("seconds", 6, 25)
def test_nobody_notices_that_connections_end(
    own_server: ServerProcess, promise: Promise, name: str, seconds: float
) -> None:
    """Streams, sessions, watchers and members of rounds go on where their connection ended."""
    own_server.flags = ("--max-connection-age-seconds", "1", "--drain-seconds", "1")
    way = Way(own_server.start().target)
    stopping = threading.Event()
    with ThreadPoolExecutor() as pool, in_tasks(way) as tasks, Mixed(way.connect, name) as load:
        members = [pool.submit(synchronize, way, name, stopping) for _ in range(2)]
        time.sleep(seconds)
        stopping.set()
        rounds, same = (member.result(60) for member in members)
        assert rounds == same
    seen = load.check(way.target)
    with way.connect() as client:
        found = client.get(f"{name}/rounds").stats()
    assert (found.num_batches, float(np.max(found.count))) == (rounds, rounds * 2 * ROWS)
    print(f"{load.told()}; {tasks.result()} in tasks")
    cut = {method: ended(own_server, method) for method in STREAMS}
    assert min(cut.values()) >= seconds / 3, cut
    promise(
        f"Connections end after 1 s, {seconds} s long",
        "no caller sees an error, nothing is lost or doubled",
        f"{seen}; {rounds} rounds of {rounds}; {sum(cut.values())} streams cut",
    )


# Those that a client keeps open.
STREAMS = ("UpdateRunningStatsStream", "NormalizeManyStream", "WatchRunningStats", "SynchronizeStats")


def synchronize(way: Way, name: str, stopping: threading.Event) -> int:
    """Be one of two members until both are told to stop; returns how many rounds that were."""
    batch = np.full((ROWS, FEATURES), 3.0)
    with way.connect() as client:
        normalizer = client.create(f"{name}/rounds", SPEC, exist_ok=True)
        with normalizer.join("step", 2, update=True) as member:
            for number in range(1, 10**9):
                merged = member.sync(batch, vector=[1.0, stopping.is_set()])
                assert np.max(merged.count) == 2 * ROWS
                assert merged.vector[0] == 2
                if merged.vector[1] == 2:
                    return number
                time.sleep(0.005)
    raise AssertionError("unreachable")


@contextmanager
def in_tasks(way: Way) -> Iterator[Future[int]]:
    """Meanwhile, normalize in tasks that share a client; the future has how often. Leaving it raises what they saw."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, _normalize(way, stopping))
        try:
            yield done
        finally:
            stopping.set()
        done.result(60)


async def _normalize(way: Way, stopping: threading.Event) -> int:
    rng, layer, done = np.random.default_rng(1), normstats.LayerNorm((FEATURES,)), 0
    async with way.connect_aio() as client:

        async def again(rows: int) -> None:
            nonlocal done
            x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
            expected = await client.normalize(x, layer)
            while not stopping.is_set():
                assert np.array_equal(await client.normalize(x, layer), expected)
                done += 1
                await asyncio.sleep(0.02)

        await asyncio.gather(*(again(rows) for rows in (4, 4, 4, 4, 2**17)))
    return done


def ended(server: ServerProcess, method: str = "") -> int:
    """How many calls have ended there; of one method, if it is named."""
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(metrics(server))
        for sample in family.samples
        if sample.name == "normstats_calls_total" and method in ("", sample.labels["method"])
    )


def metrics(server: ServerProcess) -> str:
    """What Prometheus would read."""
    return httpx.get(f"{server.http}/metrics", timeout=10).raise_for_status().text
