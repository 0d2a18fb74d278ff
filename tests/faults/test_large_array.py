"""An array larger than the server: it passes in chunks, and the server holds a few of them."""

from __future__ import annotations

import numpy as np
import pytest

import normstats
from tests.faults.conftest import Promise, Site
from tests.faults.procfs import Process
from tests.faults.sizes import sized

ROW, GIB = 1024, 1 << 30


@sized("size_bytes", GIB // 4, 4 * GIB)
@pytest.mark.timeout(300)
def test_an_array_larger_than_the_server_passes_through_it(sqlite: Site, promise: Promise, size_bytes: int) -> None:
    server = sqlite.server().start()
    process = Process(server)
    x = np.empty((size_bytes // (4 * ROW), ROW), np.float32)
    x[:] = np.random.default_rng(0).standard_normal(ROW, dtype=np.float32)
    spec = normstats.LayerNorm(ROW)
    with normstats.connect(server.target, timeout=240) as client:
        row = client.normalize(x[:1], spec)
        before = process.memory_bytes
        process.forget_peak()
        y = client.normalize(x, spec)
    assert y.shape == x.shape
    assert all((part == row).all() for part in np.array_split(y, 64))
    grown = (process.peak_bytes - before) / (1 << 20)
    seen = f"RSS {process.peak_bytes / (1 << 20):.0f} MiB at most, {grown:.0f} above idle"
    assert grown < 400, seen
    assert process.peak_bytes < GIB, seen
    promise(f"An array of {size_bytes / GIB:g} GiB", "RSS < 1 GiB, < 400 MB above idle", seen)
