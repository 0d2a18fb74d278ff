"""Timeouts hold, what is closed says so, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import normstats
from normstats.sync import UpdateStream
from tests.server_process import ServerProcess

NOBODY = "127.0.0.1:1"
LARGE = np.zeros((1 << 12, 128), np.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.update({"a": np.ones((1, 1))}, timeout=0.2),
        lambda client: client.normalize(LARGE, "a", timeout=0.2),
    ],
    ids=["update", "normalize"],
)
def test_a_calls_timeout_holds_for_asking_what_the_name_means(call: Callable[[normstats.Client], Any]) -> None:
    with normstats.connect(NOBODY, timeout=20) as client:
        began = time.monotonic()
        with pytest.raises(normstats.DeadlineExceeded):
            call(client)
        assert time.monotonic() - began < 5


def test_leaving_a_stream_at_once_ends_whenever_its_thread_began() -> None:
    client = normstats.connect(NOBODY)

    def leave() -> None:
        for spin in range(200):
            try:
                with UpdateStream(client._connection, "a", normstats.Standardize(1), 8):
                    for _ in range(spin * 20 % 800):
                        pass
                    raise LookupError
            except LookupError:
                pass

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(60)
    assert not leaving.is_alive()
    client.close()


def test_a_stream_whose_client_was_closed_says_so_at_once(server: ServerProcess, name: str) -> None:
    client = normstats.connect(server.target, timeout=20)
    ours = client.create(name, normstats.Standardize(1))

    def contribute() -> None:
        with ours.stream() as stream:
            stream.update(np.ones((1, 1)))
            stream.flush()
            client.close()
            stream.update(np.ones((1, 1)))
            stream.flush()

    began = time.monotonic()
    with pytest.raises(normstats.Cancelled):
        contribute()
    assert time.monotonic() - began < 10


class TestAio:
    """The same of the asyncio client."""

    async def test_a_stream_whose_client_was_closed_says_so_at_once(self, server: ServerProcess, name: str) -> None:
        client = normstats.aio.connect(server.target, timeout=20)
        ours = await client.create(name, normstats.Standardize(1))

        async def contribute() -> None:
            async with ours.stream() as stream:
                await stream.update(np.ones((1, 1)))
                await stream.flush()
                await client.close()
                await stream.update(np.ones((1, 1)))
                await stream.flush()

        with pytest.raises(normstats.Cancelled):
            await asyncio.wait_for(contribute(), 10)

    def test_a_client_may_be_made_before_the_loop_that_it_is_used_in(self, server: ServerProcess) -> None:
        client = normstats.aio.connect(server.target)

        async def use() -> np.ndarray:
            async with client:
                return np.asarray(await client.normalize([[3.0, 4.0]], normstats.LpNorm()))

        np.testing.assert_allclose(asyncio.run(use()), [[0.6, 0.8]])

    async def test_wrong_padding_of_a_large_array_is_an_error_not_a_cancellation(self, server: ServerProcess) -> None:
        async with normstats.aio.connect(server.target) as client:
            with pytest.raises(normstats.InvalidArgument, match="lengths are float64"):
                await client.normalize(
                    LARGE.reshape(1 << 12, 8, 16), normstats.LayerNorm(16), lengths=np.full(1 << 12, 1.5)
                )

    async def test_a_client_that_was_never_used_can_be_closed(self) -> None:
        await normstats.aio.connect(NOBODY).close()
