"""Slow links: many large tensors at once over one connection take their time, and all arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import normstats
from tests.faults.conftest import Promise
from tests.faults.proxy import Proxy
from tests.server_process import ServerProcess

CALLERS, FEATURES = 64, 1024
SECONDS = 300.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    one = ServerProcess(tmp_path).start()
    yield one
    one.stop()


@pytest.mark.parametrize(
    ("megabytes_per_second", "dtype", "rows"),
    [
        pytest.param(100, np.float32, 2048, id="1 Gbit/s"),
        pytest.param(100, np.int8, 2048, id="1 Gbit/s, answers four times as large"),
        pytest.param(100, np.float32, 8192, id="1 Gbit/s, 32 MiB", marks=pytest.mark.faults),
        pytest.param(100, np.int8, 8192, id="1 Gbit/s, 8 MiB, answers of 32", marks=pytest.mark.faults),
        pytest.param(10, np.float32, 2048, id="100 Mbit/s", marks=pytest.mark.faults),
    ],
)
async def test_no_caller_is_refused_for_want_of_memory(
    server: ServerProcess,
    megabytes_per_second: int,
    dtype: type[np.generic],
    rows: int,
    promise: Promise,
    request: pytest.FixtureRequest,
) -> None:
    """More streams than there is memory for, each of which waits for all others' bytes."""
    x = np.random.default_rng(0).integers(-100, 100, (rows, FEATURES)).astype(dtype)
    with Proxy(server.target, bytes_per_second=megabytes_per_second * 1e6) as proxy:
        async with normstats.aio.connect(proxy.target) as client:
            expected = await client.normalize(x, normstats.LayerNorm(FEATURES), timeout=SECONDS)
            results = await asyncio.gather(
                *(client.normalize(x, normstats.LayerNorm(FEATURES), timeout=SECONDS) for _ in range(CALLERS)),
                return_exceptions=True,
            )
    failed = [result for result in results if isinstance(result, BaseException)]
    assert not failed, f"{len(failed)} of {CALLERS} failed, with {failed[0]!r}"
    for result in results:
        np.testing.assert_array_equal(result, expected)
    promise(f"{CALLERS} large tensors at once, {request.node.callspec.id}", "none is refused", f"{len(results)} right")
