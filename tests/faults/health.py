"""Health, asked for all the while by a process of its own: how long each answer took, and what was wrong."""

from __future__ import annotations

import http.client
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server_process import ServerProcess

EVERY_SECONDS, PATIENCE_SECONDS = 0.05, 10.0
PORT, MAIN = "--health", "the main port"


class Answers(NamedTuple):
    """How often one was asked, how long the slowest answer took, and which answers were wrong."""

    count: int
    slowest_seconds: float
    wrong: tuple[str, ...]


@contextmanager
def watched(server: ServerProcess) -> Iterator[dict[str, Answers]]:
    """While it lasts health is asked every 50 ms, in each way; what was answered is there at its end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    page = server.http.removeprefix("http://")
    ways = {PORT: server.health, MAIN: server.target, "/healthz": page, "/readyz": page}
    asker = context.Process(target=_watch, args=(theirs, ways), daemon=True)
    asker.start()
    answers: dict[str, Answers] = {}
    try:
        assert ours.recv() == "asking"
        yield answers
    finally:
        ours.send("enough")
        if ours.poll(3 * PATIENCE_SECONDS):
            answers.update(ours.recv())
        asker.kill()
        asker.join()


def check(answers: Mapping[str, Answers], *, main_seconds: float | None = None) -> str:
    """That all were well and in time: 100 ms, and where a time for the main port is given, that one there.

    Returns a phrase with the slowest of each.
    """
    limits = {PORT: 0.1, "/healthz": 0.1, "/readyz": 0.1}
    if main_seconds is not None:
        limits[MAIN] = main_seconds
    for way, limit in limits.items():
        found = answers[way]
        assert not found.wrong, (way, found.wrong[:3], len(found.wrong), found.count)
        assert found.count > 0
        assert found.slowest_seconds < limit, (way, answers)
    slowest = ", ".join(f"{way} {answers[way].slowest_seconds * 1e3:.0f} ms" for way in limits)
    return f"slowest health {slowest}"


def _watch(parent: Connection, ways: Mapping[str, str]) -> None:
    enough = threading.Event()
    with ThreadPoolExecutor(len(ways)) as pool:
        asked = {
            way: pool.submit(_ask, _page(address, way) if way.startswith("/") else _service(address), enough)
            for way, address in ways.items()
        }
        parent.send("asking")
        parent.recv()
        enough.set()
        parent.send({way: one.result() for way, one in asked.items()})


def _ask(ask: Callable[[], str], enough: threading.Event) -> Answers:
    """Ask until it is enough. The first answer includes making the connection, and does not count."""
    ask()
    count, slowest, wrong = 0, 0.0, []
    while not enough.wait(EVERY_SECONDS):
        started = time.perf_counter()
        told = ask()
        slowest = max(slowest, time.perf_counter() - started)
        count += 1
        if told:
            wrong.append(told)
    return Answers(count, slowest, tuple(wrong))


def _service(address: str) -> Callable[[], str]:
    """Asks the gRPC health service; what is wrong with its answer."""
    # A subchannel of its own, so that nobody else's calls are before this one's.
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))

    def ask() -> str:
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            return f"{error.code()}: {error.details()}"
        return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else str(answer)

    return ask


def _page(address: str, path: str) -> Callable[[], str]:
    """Asks for a page, by a connection of its own each time, as probes do; what is wrong with the answer."""

    def ask() -> str:
        connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return "" if answer.status == 200 else f"{answer.status}: {answer.read().decode()}"
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()

    return ask
