"""Where others leave a server no memory, what streams carry is sent again, until there is some, and counted once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

import normstats
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import described
from tests.server_process import ServerProcess

MIB = 1 << 20
PRODUCERS, FEATURES = 24, 16_384  # whose moments are a megabyte
REFUSED = 'normstats_calls_refused_total{{method="{}",reason="MEMORY_FULL"}}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    one = ServerProcess(tmp_path, "--max-memory-bytes", str(16 * MIB), "--max-stream-bytes", str(2 * MIB)).start()
    yield one
    one.stop()


def test_a_large_tensor_waits_for_memory_that_others_hold(server: ServerProcess) -> None:
    slow = np.ones((4, 512, 64, 64), np.float32)
    spec = spec_wire.to_proto(specs.LocalResponseNorm(255))
    request = pb.NormalizeRequest(spec=spec, input=described(slow), data=slow.tobytes())
    x = np.random.default_rng(0).standard_normal((4096, 1024), dtype=np.float32)
    with (
        grpc.insecure_channel(server.target, [("grpc.max_receive_message_length", -1)]) as channel,
        normstats.connect(server.target) as client,
        ThreadPoolExecutor() as pool,
    ):
        expected = client.normalize(x, normstats.LayerNorm(1024))
        other = pool.submit(NormalizationServiceStub(channel).Normalize, request, timeout=60)
        while value(server, "normstats_held_bytes ") < 16 * MIB:
            assert not other.done()
        np.testing.assert_array_equal(client.normalize(x, normstats.LayerNorm(1024), timeout=60), expected)
        assert value(server, REFUSED.format("NormalizeStream")) > 0
        other.result()


def test_so_do_producers_of_wide_statistics(server: ServerProcess, name: str) -> None:
    batch = np.arange(2.0 * FEATURES).reshape(2, FEATURES)
    with normstats.connect(server.target) as client, ExitStack() as opened:
        obs = client.create(name, normstats.Standardize(FEATURES))
        streams = [opened.enter_context(obs.stream()) for _ in range(PRODUCERS)]
        for _ in range(3):
            for stream in streams:
                stream.update(batch)
        for stream in streams:
            stream.flush(timeout=60)
        stats = obs.stats()
    assert value(server, REFUSED.format("UpdateRunningStatsStream")) > 0
    assert stats.count == 6 * PRODUCERS
    np.testing.assert_array_equal(stats.mean, batch.mean(axis=0))


def value(server: ServerProcess, sample: str) -> float:
    """What /metrics says; 0 of what it does not have."""
    lines = httpx.get(f"{server.http}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample)), 0.0)
