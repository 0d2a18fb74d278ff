"""Readers of much delay commits by no more than 20 ms. What makes it so is tested in tests/server/test_slices.py."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, moments_message, update
from tests.faults.conftest import Promise, Site

NORMALIZERS, FEATURES, WIDE = 1000, 4096, 1_000_000
ROUNDS, ROUND_SECONDS = 6, 5.0
DELAY_SECONDS = 0.02


def fill(stub: NormalizationServiceStub) -> None:
    """All normalizers, with statistics, and a snapshot of the wide one."""
    moments = moments_message(np.random.default_rng(0).normal(size=(3, FEATURES)))
    batches = pb.Contribution.MomentsOfBatches(batches=[moments])
    names = [f"n/{index:04}" for index in range(NORMALIZERS)]
    for start in range(0, NORMALIZERS, 100):
        for name in names[start : start + 100]:
            create(stub, name, specs.Standardize(FEATURES))
        contributions = [pb.Contribution(normalizer=name, moments=batches) for name in names[start : start + 100]]
        stub.UpdateRunningStats(
            pb.UpdateRunningStatsRequest(producer_id=secrets.token_bytes(16), sequence=1, contributions=contributions)
        )
    create(stub, "wide", specs.Standardize(WIDE))
    stub.UpdateRunningStats(update("wide", np.random.default_rng(1).normal(size=(3, WIDE))))
    stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer="wide", tag="a"))
    stub.UpdateRunningStats(update("wide", np.random.default_rng(2).normal(size=(3, WIDE))))
    create(stub, "small", specs.Standardize(64))


def commits(stub: NormalizationServiceStub, producer: bytes, sequence: int, seconds: float) -> list[float]:
    """How long contributions took, one after another."""
    x, took, end = np.ones((3, 64)), [], time.monotonic() + seconds
    while time.monotonic() < end:
        request = update("small", x, producer=producer, sequence=sequence + len(took))
        began = time.perf_counter()
        stub.UpdateRunningStats(request)
        took.append(time.perf_counter() - began)
        time.sleep(0.002)
    return took


@pytest.mark.faults
def test_readers_do_not_delay_commits(sqlite: Site, promise: Promise) -> None:
    server, producer = sqlite.server().start(), secrets.token_bytes(16)
    alone: list[float] = []
    beside: list[float] = []
    with grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        fill(stub)
        for number in range(2 * ROUNDS):  # taken in turns: whatever else the machine does, it does to both
            command = [sys.executable, "-m", "tests.faults.readers", server.target, str(ROUND_SECONDS + 2)]
            reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if number % 2 else None
            if reader is not None:
                time.sleep(1)
            took = beside if reader is not None else alone
            took += commits(stub, producer, 1 + len(alone) + len(beside), ROUND_SECONDS)
            if reader is not None:
                lists, comparisons = map(int, reader.communicate(timeout=120)[0].split())
                assert lists, "it was read"
                assert comparisons, "and compared"
    p99s = [sorted(one)[int(0.99 * len(one))] for one in (alone, beside)]
    seen = f"{p99s[0] * 1e3:.1f} ms alone, {p99s[1] * 1e3:.1f} ms beside readers (p99)"
    promise("readers delay commits little", f"p99 within {DELAY_SECONDS * 1e3:.0f} ms", seen)
    assert p99s[1] - p99s[0] <= DELAY_SECONDS, seen


def test_a_reader_reads_what_is_there(sqlite: Site) -> None:
    """The command that the test above starts."""
    server = sqlite.server().start()
    with grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        create(stub, "wide", specs.Standardize(2))
        stub.UpdateRunningStats(update("wide", np.eye(2)))
        stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer="wide", tag="a"))
    command = [sys.executable, "-m", "tests.faults.readers", server.target, "0.5"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    lists, comparisons = map(int, told.stdout.split())
    assert lists > 0
    assert comparisons > 0
