"""Normalizations on a stream that stays open: fewer messages, the same results, over whatever breaks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

import normstats
from normstats import sessions
from tests.server_process import ServerProcess

RNG = np.random.default_rng(11)
LAYER, LAYER_64 = normstats.LayerNorm(4), normstats.LayerNorm(64)
# Rows of 4 float64, so many that they share a message, or have one each.
either_size = pytest.mark.parametrize("rows", [2, 10_000], ids=["small", "large"])


def messages(server: ServerProcess) -> int:
    """How many the server has answered on such streams."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("normstats_stream_messages_total "):
                return int(float(line.split()[1]))
    raise KeyError("normstats_stream_messages_total")


def one_by_one(server: ServerProcess, arrays: list[np.ndarray], spec: normstats.specs.Spec = LAYER) -> list[np.ndarray]:
    """What each gives in a call of its own."""
    outputs = []
    for x in arrays:
        with normstats.connect(server.target) as client:
            outputs.append(client.normalize(x, spec))
    return outputs


async def test_calls_of_one_turn_share_a_message(server: ServerProcess) -> None:
    arrays = [RNG.normal(size=(1 + index % 5, 4)).astype(np.float32) for index in range(40)]
    async with normstats.aio.connect(server.target) as client:
        await client.normalize(arrays[0], LAYER)  # the first goes by itself
        before = messages(server)
        for _ in range(5):
            outputs = await asyncio.gather(*(client.normalize(x, LAYER) for x in arrays))
        assert messages(server) - before == 5 * 3  # of 16, 16 and 8
    for y, expected in zip(outputs, one_by_one(server, arrays[:5]), strict=False):
        np.testing.assert_array_equal(y, expected)


async def test_those_that_one_answer_woke_go_together_again(server: ServerProcess) -> None:
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    async with normstats.aio.connect(server.target) as client:
        await client.normalize(x, LAYER)
        before = messages(server)

        async def caller() -> None:
            for _ in range(20):
                await client.normalize(x, LAYER)

        await asyncio.gather(*(caller() for _ in range(8)))
        assert messages(server) - before < 40  # of 160 tensors


async def test_one_caller_goes_on_one_stream(server: ServerProcess) -> None:
    x = RNG.normal(size=(3, 4))
    async with normstats.aio.connect(server.target) as client:
        outputs = [await client.normalize(x, LAYER) for _ in range(10)]
        assert messages(server) > 0
    assert all(np.array_equal(y, outputs[0]) for y in outputs)


def large(kib: int, dtype: str = "float32") -> np.ndarray:
    """Too large to share a message, and no more than a chunk."""
    return (RNG.normal(size=(kib << 10) // np.dtype(dtype).itemsize) * 50).astype(dtype).reshape(-1, 64)


@pytest.mark.parametrize("kib", [65, 300, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8"])
async def test_large_ones_are_the_same_on_a_stream_and_each_has_a_message(
    server: ServerProcess, kib: int, dtype: str
) -> None:
    spec = normstats.LayerNorm(64, weight=RNG.normal(size=64), bias=RNG.normal(size=64))
    arrays = [large(kib, dtype) for _ in range(6)]
    expected = one_by_one(server, arrays, spec)
    before = messages(server)
    async with normstats.aio.connect(server.target) as client:
        await client.normalize(arrays[0], spec)
        for _ in range(3):
            outputs = await asyncio.gather(*(client.normalize(x, spec) for x in arrays))
            for y, once in zip(outputs, expected, strict=True):
                assert y.flags.writeable
                np.testing.assert_array_equal(y, once)
    with normstats.connect(server.target) as blocking, ThreadPoolExecutor(3) as threads:
        blocking.normalize(arrays[0], spec)
        for y, once in zip(threads.map(lambda x: blocking.normalize(x, spec), arrays), expected, strict=True):
            np.testing.assert_array_equal(y, once)
    assert messages(server) - before == 3 * 6 + 6


async def test_what_is_wrong_with_a_large_one_is_raised_and_the_next_goes_on(server: ServerProcess) -> None:
    x = large(500)
    async with normstats.aio.connect(server.target) as client:
        expected = await client.normalize(x, LAYER_64)
        for _ in range(3):
            np.testing.assert_array_equal(await client.normalize(x, LAYER_64), expected)
            with pytest.raises(normstats.InvalidArgument, match="input"):
                await client.normalize(x, LAYER)
            with pytest.raises(normstats.NotFound):
                await client.normalize(x, "nobody")


async def test_new_statistics_are_seen_at_once_by_large_ones(server: ServerProcess, name: str) -> None:
    x = large(400)
    async with normstats.aio.connect(server.target) as client:
        running = await client.create(name, normstats.Standardize(64))
        for shift in (0.0, 5.0, 9.0):
            await running.update(x + shift)
            statistics = await running.stats()
            for _ in range(4):  # by a call, by a kernel, and by one made ready
                y = await running.normalize(x)
                expected = (x - statistics.mean) / np.sqrt(statistics.var + running.spec.eps)
                np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


async def test_a_small_one_does_not_stand_behind_large_ones(server: ServerProcess) -> None:
    x, small = large(1024), np.ones((1, 64), np.float32)
    async with normstats.aio.connect(server.target) as client:
        for y in (x, small, x, small):
            await client.normalize(y, LAYER_64)
        ended: list[str] = []

        async def noted(label: str, y: np.ndarray) -> None:
            await client.normalize(y, LAYER_64)
            ended.append(label)

        await asyncio.gather(*(noted("large", x) for _ in range(40)), noted("small", small))
    assert ended.index("small") < 20


async def test_what_is_wrong_with_one_is_raised_to_that_one(server: ServerProcess, name: str) -> None:
    good = RNG.normal(size=(2, 4))
    async with normstats.aio.connect(server.target) as client:
        await client.normalize(good, LAYER)
        calls = (
            client.normalize(good, LAYER),
            client.normalize(np.ones((2, 9)), LAYER),
            client.normalize(good, "nobody"),
            client.normalize(good, normstats.BatchNorm(4), mode="eval"),
            client.normalize(good, LAYER),
        )
        first, shape, missing, unseen, last = await asyncio.gather(*calls, return_exceptions=True)
    np.testing.assert_array_equal(first, last)
    assert isinstance(shape, normstats.InvalidArgument)
    assert shape.field.startswith("input")
    assert isinstance(missing, normstats.NotFound)
    assert missing.reason == "NORMALIZER_NOT_FOUND"
    assert isinstance(unseen, normstats.FailedPrecondition)


async def test_empty_arrays_come_back_empty_however_often(server: ServerProcess) -> None:
    async with normstats.aio.connect(server.target) as client:
        for _ in range(10):
            calls = (client.normalize(np.zeros((rows, 4), np.float32), LAYER) for rows in (0, 1, 0))
            outputs = await asyncio.gather(*calls)
            assert [y.shape for y in outputs] == [(0, 4), (1, 4), (0, 4)]


async def test_a_thousand_at_once_of_what_was_never_seen_wait_for_room(server: ServerProcess) -> None:
    arrays = [RNG.normal(size=(1, 3 + index)).astype(np.float32) for index in range(1000)]
    async with normstats.aio.connect(server.target) as client:
        await client.normalize(arrays[0], normstats.LpNorm())
        outputs = await asyncio.gather(*(client.normalize(x, normstats.LpNorm()) for x in arrays))
    for x, y in zip(arrays, outputs, strict=True):
        np.testing.assert_allclose(y, x / np.linalg.norm(x), rtol=1e-5)


async def test_batches_to_train_on_are_each_counted_once(server: ServerProcess, name: str) -> None:
    batches = [RNG.normal(5, 2, (4, 3)) for _ in range(20)]
    async with normstats.aio.connect(server.target) as client:
        ours = await client.create(name, normstats.BatchNorm(3))
        outputs = await asyncio.gather(*(ours.normalize(x, mode="train") for x in batches))
        many = await client.normalize_many(batches, name, mode="train")
        stats = await ours.stats()
    for one, other in zip(outputs, many, strict=True):
        np.testing.assert_array_equal(one, other)
    assert stats.num_batches == 40
    assert stats.count == 160


async def test_new_statistics_are_seen_at_once(server: ServerProcess, name: str) -> None:
    x = np.array([[1.0], [3.0]])
    async with normstats.aio.connect(server.target) as client:
        ours = await client.create(name, normstats.MinMax(1))
        for top in (3.0, 5.0, 9.0, 17.0):
            await ours.update(np.array([[1.0], [top]]))
            for _ in range(5):
                np.testing.assert_array_equal(await ours.normalize(x), (x - 1) / (top - 1))


@either_size
async def test_who_gives_up_does_not_take_the_others_along(server: ServerProcess, rows: int) -> None:
    x = RNG.normal(size=(rows, 4))
    async with normstats.aio.connect(server.target) as client:
        await client.normalize(x, LAYER)
        calls = [asyncio.ensure_future(client.normalize(x, LAYER)) for _ in range(8)]
        await asyncio.sleep(0)
        calls[1].cancel()  # under way, or about to be
        first, gone, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert all(np.array_equal(y, first) for y in others)


class TestOverBreaks:
    """Whatever ends a stream, its calls go on by themselves."""

    @either_size
    async def test_asyncio(self, own_server: ServerProcess, rows: int) -> None:
        x = RNG.normal(size=(rows, 4))
        async with normstats.aio.connect(own_server.start().target) as client:
            expected = await client.normalize(x, LAYER)
            milestones = {number: asyncio.Event() for number in (100, 300, 500)}
            ended = 0

            async def caller() -> None:
                nonlocal ended
                for _ in range(150):
                    np.testing.assert_array_equal(await client.normalize(x, LAYER), expected)
                    ended += 1
                    if ended in milestones:
                        milestones[ended].set()

            async def breaker() -> None:
                for milestone in milestones.values():
                    await milestone.wait()
                    await asyncio.to_thread(own_server.kill)
                    await asyncio.to_thread(own_server.start)

            await asyncio.gather(breaker(), *(caller() for _ in range(6)))
            assert ended == 900

    @either_size
    def test_threads(self, own_server: ServerProcess, rows: int) -> None:
        x = RNG.normal(size=(rows, 4))
        with normstats.connect(own_server.start().target) as client:
            expected = client.normalize(x, LAYER)

            def caller(_index: int) -> bool:
                return all(np.array_equal(client.normalize(x, LAYER), expected) for _ in range(200))

            with ThreadPoolExecutor(5) as pool:
                ended = pool.map(caller, range(4))
                for _ in range(2):
                    time.sleep(0.2)
                    own_server.kill()
                    own_server.start()
                assert all(ended)

    @either_size
    async def test_a_server_that_stops_tells_and_is_not_held_up(self, own_server: ServerProcess, rows: int) -> None:
        x = RNG.normal(size=(rows, 4))
        async with normstats.aio.connect(own_server.start().target, timeout=20) as client:
            expected = await client.normalize(x, LAYER)
            await client.normalize(x, LAYER)
            begun = time.monotonic()
            assert await asyncio.to_thread(own_server.terminate) == 0
            assert time.monotonic() - begun < 5
            waiting = asyncio.ensure_future(client.normalize(x, LAYER))
            await asyncio.to_thread(own_server.start)
            np.testing.assert_array_equal(await waiting, expected)

    @either_size
    async def test_batches_to_train_on_are_still_counted_once(self, own_server: ServerProcess, rows: int) -> None:
        async with normstats.aio.connect(own_server.start().target) as client:
            ours = await client.create("a", normstats.BatchNorm(4))

            async def caller(number: int) -> None:
                for _ in range(30):
                    await ours.normalize(np.full((rows, 4), number), mode="train")

            async def breaker() -> None:
                for _ in range(2):
                    await asyncio.sleep(0.1)
                    await asyncio.to_thread(own_server.kill)
                    await asyncio.to_thread(own_server.start)

            await asyncio.gather(breaker(), *(caller(number) for number in range(4)))
            stats = await ours.stats()
            assert (stats.num_batches, stats.count) == (120, 120 * rows)


class TestDeadlines:
    """A call ends when its time is over, whatever the stream does."""

    @pytest.fixture
    def silent(self) -> object:
        """A server that takes such streams and never answers them."""

        def stream(messages: object, context: grpc.ServicerContext) -> object:
            for _ in messages:  # type: ignore[attr-defined]
                pass
            yield from ()

        def unary(_request: object, context: grpc.ServicerContext) -> bytes:
            if self.once:
                self.once = False
                return b""
            threading.Event().wait(context.time_remaining())
            return b""

        self.once = True
        handlers = {
            "NormalizeManyStream": grpc.stream_stream_rpc_method_handler(stream),
            "Normalize": grpc.unary_unary_rpc_method_handler(unary),
        }
        server = grpc.server(ThreadPoolExecutor(8))
        service = "normstats.v1.NormalizationService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0)

    @either_size
    def test_threads(self, silent: str, rows: int) -> None:
        with normstats.connect(silent, timeout=0.5) as client:
            with pytest.raises(normstats.Internal):
                client.normalize(np.ones((rows, 4)), LAYER)  # the first, which is no stream's
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(normstats.DeadlineExceeded):
                    client.normalize(np.ones((rows, 4)), LAYER)
                assert 0.4 < time.monotonic() - begun < 1.0

    @either_size
    async def test_asyncio(self, silent: str, rows: int) -> None:
        async with normstats.aio.connect(silent, timeout=0.5) as client:
            with pytest.raises(normstats.Internal):
                await client.normalize(np.ones((rows, 4)), LAYER)
            begun = time.monotonic()
            calls = [client.normalize(np.ones((rows, 4)), LAYER, timeout=timeout) for timeout in (0.2, 0.4) * 4]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(one) for one in results] == [normstats.DeadlineExceeded] * 8
            assert 0.3 < time.monotonic() - begun < 0.8


async def test_a_stream_that_has_served_its_time_is_followed_by_another(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LIFE_SECONDS", 0.05)
    x = RNG.normal(size=(2, 4))
    async with normstats.aio.connect(server.target) as client:
        expected = await client.normalize(x, LAYER)
        seen = set()
        begun = time.monotonic()
        while time.monotonic() < begun + 0.5:
            np.testing.assert_array_equal(await client.normalize(x, LAYER), expected)
            seen.add(id(client._connection._session._talk))
    assert len(seen) > 1


def test_a_program_that_closes_nothing_ends(server: ServerProcess, tmp_path: Path) -> None:
    program = """
import asyncio, sys, numpy as np, normstats
x, spec = np.ones((2, 4)), normstats.LayerNorm(4)
client = normstats.connect(sys.argv[1])
for _ in range(5): client.normalize(x, spec)
async def main():
    client = normstats.aio.connect(sys.argv[1])
    for _ in range(5): await client.normalize(x, spec)
asyncio.run(main())
print("done")
"""
    command = [sys.executable, "-W", "error", "-c", program, server.target]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_the_sync_client_sends_many_in_few_messages(server: ServerProcess, count: int) -> None:
    arrays = [RNG.normal(size=(2, 4)) for _ in range(count)]
    with normstats.connect(server.target) as client:
        many = client.normalize_many(arrays, normstats.RMSNorm(4))
        for x, y in zip(arrays, many, strict=True):
            np.testing.assert_array_equal(y, client.normalize(x, normstats.RMSNorm(4)))
