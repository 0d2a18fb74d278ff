"""Tensors in memory that client and server share: nothing is copied needlessly, nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import normstats
from tests.server_process import ServerProcess

RNG = np.random.default_rng(13)
LAYER = normstats.LayerNorm(64, weight=np.linspace(0.5, 2, 64), bias=np.linspace(-1, 1, 64))
X = RNG.normal(3, 2, (1000, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("sharing")
    process = ServerProcess(folder, "--shared-memory", "--shared-memory-bytes", str(1 << 24), by_socket=True).start()
    yield process
    process.stop()


@pytest.fixture
def shared(sharing: ServerProcess) -> Iterator[normstats.Client]:
    with normstats.connect(sharing.target, shared_memory=True) as client:
        yield client


@pytest.fixture(scope="module")
def expected(sharing: ServerProcess) -> np.ndarray:
    """X by LAYER, as it comes by messages."""
    with normstats.connect(sharing.target) as client:
        return np.asarray(client.normalize(X, LAYER))


def lent_bytes(server: ServerProcess) -> float:
    """What the server's metrics say."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("normstats_shared_memory_bytes "):
                return float(line.split()[1])
    raise KeyError("normstats_shared_memory_bytes")


def lies_in_shared_memory(values: np.ndarray) -> bool:
    """As the kernel sees it: in a mapping of a memfd."""
    address = values.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return "memfd:normstats" in line
    return False


def test_results_are_those_of_messages_and_lie_where_the_server_wrote_them(
    shared: normstats.Client, expected: np.ndarray
) -> None:
    y = shared.normalize(X, LAYER)
    np.testing.assert_array_equal(y, expected)
    assert lies_in_shared_memory(y)
    assert not np.shares_memory(X, y)


def test_an_array_made_there_is_not_copied(shared: normstats.Client, expected: np.ndarray) -> None:
    x = shared.empty(X.shape)
    assert (x.shape, x.dtype) == (X.shape, np.float32)
    assert lies_in_shared_memory(x)
    x[:] = X
    np.testing.assert_array_equal(shared.normalize(x, LAYER), expected)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(shared.normalize(x[500:], LAYER), expected[500:])  # from within


def test_in_place(shared: normstats.Client, expected: np.ndarray) -> None:
    x = shared.empty(X.shape)
    x[:] = X
    assert shared.normalize(x, LAYER, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_into_an_array_that_is_given(shared: normstats.Client, expected: np.ndarray) -> None:
    there, elsewhere, itself = shared.empty(X.shape), np.empty_like(X), X.copy()
    assert shared.normalize(X, LAYER, out=there) is there
    assert shared.normalize(X, LAYER, out=elsewhere) is elsewhere
    assert shared.normalize(itself, LAYER, out=itself) is itself
    for y in (there, elsewhere, itself):
        np.testing.assert_array_equal(y, expected)


def test_an_output_that_overlaps_the_input_goes_elsewhere_first(shared: normstats.Client, expected: np.ndarray) -> None:
    whole = shared.empty((1016, 64))
    x, y = whole[:1000], whole[16:]
    x[:] = X
    assert shared.normalize(x, LAYER, out=y) is y
    np.testing.assert_array_equal(y, expected)


def test_torch_tensors_of_every_type(shared: normstats.Client, sharing: ServerProcess) -> None:
    with normstats.connect(sharing.target) as messages:
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32):
            x = torch.from_numpy(X).repeat(2, 1).to(dtype)
            y = shared.normalize(x, LAYER)
            torch.testing.assert_close(y, messages.normalize(x, LAYER), rtol=0, atol=0)
            assert lies_in_shared_memory(y.view(torch.uint8).numpy())


def test_regions_serve_again_once_nobody_looks_at_the_result(sharing: ServerProcess) -> None:
    with normstats.connect(sharing.target, shared_memory=True) as client:
        for _ in range(200):  # 200 x 512 KiB, where 16 MiB are lent
            y = client.normalize(X, LAYER)[1:, ::2].T
        assert lies_in_shared_memory(y)
        assert lent_bytes(sharing) <= 3 * (1 << 18)


def test_results_stay_as_long_as_somebody_looks_at_them(shared: normstats.Client, expected: np.ndarray) -> None:
    parts = [shared.normalize(X + index, LAYER)[:3].copy() for index in range(3)]
    views = [shared.normalize(X + index, LAYER)[:3] for index in range(3)]
    gc.collect()
    for part, view in zip(parts, views, strict=True):
        np.testing.assert_array_equal(part, view)


def test_too_much_is_refused_and_what_lies_idle_is_given_back_first(sharing: ServerProcess) -> None:
    with normstats.connect(sharing.target, shared_memory=True) as client:
        for rows in (250, 750, 1500, 3000, 5000):  # of other sizes each; together more than one caller may hold
            x = RNG.normal(size=(rows, 64)).astype(np.float32)
            assert client.normalize(x, LAYER).shape == x.shape
        with pytest.raises(normstats.ResourceExhausted, match="shared-memory-bytes") as caught:
            client.normalize(np.zeros((200_000, 64), np.float32), LAYER)
        assert caught.value.reason == "SHARED_MEMORY_LIMIT"
        assert client.normalize(X, LAYER).shape == X.shape


def test_all_is_given_back_when_the_client_goes(sharing: ServerProcess) -> None:
    client = normstats.connect(sharing.target, shared_memory=True)
    y = client.normalize(X, LAYER)
    kept = y.copy()
    assert lent_bytes(sharing) > 0
    client.close()
    wait_until_nothing_is_lent(sharing)
    np.testing.assert_array_equal(y, kept)  # what is at hand stays


def wait_until_nothing_is_lent(server: ServerProcess) -> None:
    deadline = time.monotonic() + 10
    while lent_bytes(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lent_bytes(server) == 0


HANGS = """
import sys, numpy as np, normstats
client = normstats.connect(sys.argv[1], shared_memory=True)
x = client.empty((1000, 64))
print("ready", flush=True)
sys.stdin.read()
"""


def test_all_is_taken_back_from_a_client_that_was_killed(sharing: ServerProcess) -> None:
    command = [sys.executable, "-c", HANGS, sharing.target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert lent_bytes(sharing) > 0
        process.kill()
    wait_until_nothing_is_lent(sharing)


def test_it_goes_on_with_a_server_that_has_begun_anew(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        with normstats.connect(server.target, shared_memory=True) as client:
            x = client.empty(X.shape)
            x[:] = X
            first = client.normalize(x, LAYER)
            kept = first.copy()
            server.kill()
            server.start()
            np.testing.assert_array_equal(client.normalize(x, LAYER), kept)
            np.testing.assert_array_equal(first, kept)
            assert lies_in_shared_memory(client.normalize(x, LAYER))
    finally:
        server.stop()


def test_what_is_to_be_overwritten_is_there_for_another_attempt(tmp_path: Path, expected: np.ndarray) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        with normstats.connect(server.target, shared_memory=True) as client:
            for _ in range(2):
                x = client.empty(X.shape)
                x[:] = X
                server.kill()
                server.start()
                assert client.normalize(x, LAYER, out=x) is x
                np.testing.assert_array_equal(x, expected)
    finally:
        server.stop()


@contextmanager
def stopped(server: ServerProcess) -> Iterator[None]:
    """The server does nothing, and is there."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_memory_of_a_call_that_was_given_up_serves_no_other(tmp_path: Path, expected: np.ndarray) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        with normstats.connect(server.target, shared_memory=True) as client:
            for _ in range(3):
                client.normalize(X, LAYER)
            pool = client._connection.memory._pool  # type: ignore[union-attr]
            with stopped(server), pytest.raises(normstats.DeadlineExceeded):
                client.normalize(X, LAYER, timeout=0.3)
            given_up = {values.__array_interface__["data"][0] for values in pool._withheld}
            assert len(given_up) == 2
            for _ in range(5):
                y = client.normalize(X, LAYER)
                np.testing.assert_array_equal(y, expected)
                assert y.__array_interface__["data"][0] not in given_up
    finally:
        server.stop()


def test_asking_for_memory_takes_no_longer_than_the_call_may(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        with normstats.connect(server.target, shared_memory=True) as client:
            client.normalize(X[:300], LAYER)
            with stopped(server):
                begun = time.monotonic()
                with pytest.raises(normstats.DeadlineExceeded):
                    client.empty(1 << 20, timeout=0.3)
                assert time.monotonic() - begun < 2
            assert client.empty(1 << 20).nbytes == 4 << 20
    finally:
        server.stop()


async def test_asking_that_was_cancelled_does_not_spoil_the_next(tmp_path: Path, expected: np.ndarray) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        async with normstats.aio.connect(server.target, shared_memory=True) as client:
            await client.normalize(X[:300], LAYER)
            with stopped(server):
                asking = asyncio.ensure_future(client.normalize(X, LAYER))
                await asyncio.sleep(0.1)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
            np.testing.assert_array_equal(await client.normalize(X, LAYER), expected)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert (await client.empty(1 << 21)).nbytes == 8 << 20  # of a size that none was of
            results = await asyncio.gather(*(client.normalize(X, LAYER) for _ in range(8)))
            assert all(np.array_equal(y, expected) for y in results)
    finally:
        server.stop()


async def test_many_at_once_outlive_their_server(tmp_path: Path, expected: np.ndarray) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    try:
        async with normstats.aio.connect(server.target, shared_memory=True) as client:
            await asyncio.gather(*(client.normalize(X, LAYER) for _ in range(8)))
            for _ in range(2):
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                results = await asyncio.gather(*(client.normalize(X, LAYER) for _ in range(8)))
                assert all(np.array_equal(y, expected) for y in results)
    finally:
        server.stop()


def test_arrays_that_are_kept_are_refused_in_the_end(sharing: ServerProcess) -> None:
    with normstats.connect(sharing.target, shared_memory=True) as client:
        kept: list[np.ndarray] = []

        def keep_on() -> None:
            while True:
                kept.append(client.empty(1 << 18))  # a megabyte each, where 16 are lent

        with pytest.raises(normstats.ResourceExhausted):
            keep_on()
        assert len(kept) <= 16


def test_a_server_that_stops_is_not_held_up(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--shared-memory", by_socket=True).start()
    with normstats.connect(server.target, shared_memory=True) as client:
        client.normalize(X, LAYER)
        begun = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - begun < 5


def test_many_threads_share_one_client(shared: normstats.Client, expected: np.ndarray) -> None:
    def work(number: int) -> bool:
        return all(np.array_equal(shared.normalize(X[number:], LAYER), expected[number:]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


async def test_the_asyncio_client_too(sharing: ServerProcess, expected: np.ndarray) -> None:
    async with normstats.aio.connect(sharing.target, shared_memory=True) as client:
        x = await client.empty(X.shape)
        x[:] = X
        results = await asyncio.gather(*(client.normalize(x, LAYER) for _ in range(4)))
    for y in results:
        np.testing.assert_array_equal(y, expected)


def test_running_statistics_by_each_mode(shared: normstats.Client, name: str) -> None:
    ours = shared.create(name, normstats.BatchNorm(64))
    trained = ours.normalize(X, mode="train")
    np.testing.assert_array_equal(shared.normalize(X, name, mode="batch"), trained)
    assert ours.stats().count == 1000
    y = ours.normalize(X)
    np.testing.assert_allclose(ours.normalize(y, inverse=True), X, rtol=1e-5, atol=1e-5)


def test_a_fork_does_not_write_into_its_parents_memory(
    shared: normstats.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = shared.empty(X.shape)
    shared.normalize(x, LAYER)  # which leaves a region free
    pool = shared._connection.memory._pool  # type: ignore[union-attr]
    assert pool.place_of(x) is not None
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert pool.place_of(x) is None
    assert pool.take(x.nbytes) is None


class TestRefused:
    """Each with what to do about it."""

    def test_over_the_network(self) -> None:
        with pytest.raises(normstats.InvalidArgument, match=r"'localhost:50051' is no unix:PATH"):
            normstats.connect(shared_memory=True)

    def test_a_server_that_does_not_offer_it(self, tmp_path: Path) -> None:
        server = ServerProcess(tmp_path, by_socket=True).start()
        try:
            with (
                normstats.connect(server.target, shared_memory=True) as client,
                pytest.raises(normstats.FailedPrecondition, match="serve with --shared-memory"),
            ):
                client.normalize(X, LAYER)
        finally:
            server.stop()

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            (np.empty((1000, 63), np.float32), r"shape \(1000, 63\); expected a numpy array, float32 of shape"),
            (np.empty(X.shape), r"out is float64 .*; expected a numpy array, float32"),
            (torch.empty(X.shape), "expected a numpy array"),
            (np.empty((64, 1000), np.float32).T, "not dense"),
            (np.broadcast_to(np.float32(0), X.shape), "not dense"),
        ],
    )
    @pytest.mark.parametrize("by", ["memory", "messages"])
    def test_an_output_that_does_not_fit(self, sharing: ServerProcess, by: str, out: object, message: str) -> None:
        with (
            normstats.connect(sharing.target, shared_memory=by == "memory") as client,
            pytest.raises(normstats.InvalidArgument, match=message) as caught,
        ):
            client.normalize(X, LAYER, out=out)
        assert caught.value.field == "out"
