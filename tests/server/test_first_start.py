"""A server's first start, with no compiled kernel on disk: it serves at once, and no call waits for a compiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import numpy as np
import pytest

import normstats
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire.dtypes import BY_NAME
from tests.contract import described
from tests.faults.procfs import Process
from tests.server_process import ServerProcess

pytest.importorskip("numba", reason="numba is not installed")

SERVES_SECONDS, WAITS_SECONDS = 5.0, 1.0
# Beside other tests the processor's own seconds count, which contention stretches from 3 to 4; compiling took 17 more.
CPU_SECONDS = 8.0
COMPILES_SECONDS = 400  # alone on 2 cores: 110
# numba looks nowhere else then.
ONLY_THERE = "NUMBA_CACHE_LOCATOR_CLASSES=UserProvidedCacheLocator"

STYLE = np.random.default_rng(2).normal(7, 3, (6, 4, 9))
WEIGHT, BIAS = np.linspace(0.5, 2, 5, dtype=np.float32), np.linspace(-1, 1, 5)
RUNNING: dict[str, Any] = {"running_mean": [0.5, -0.5, 1, 2], "running_var": [4, 0.25, 1, 9]}
LENGTHS, MASK = [5, 3, 1, 4, 2, 5], np.arange(30).reshape(6, 5) % 3 > 0

# Of x (6, 4, 5). The README's table, with what calls may say.
INLINE: dict[str, tuple[normstats.Spec, dict[str, Any]]] = {
    "BatchNorm": (normstats.BatchNorm(4, **RUNNING), {}),
    "BatchNorm, inverse": (normstats.BatchNorm(4, **RUNNING), {"inverse": True}),
    "BatchNorm by batch": (normstats.BatchNorm(4, weight=[1, 2, 3, 4], bias=[4, 3, 2, 1]), {"mode": "batch"}),
    "BatchNorm by batch, lengths": (normstats.BatchNorm(4), {"mode": "batch", "lengths": LENGTHS}),
    "BatchNorm, ghost batches": (normstats.BatchNorm(4, virtual_batch_size=2), {"mode": "batch"}),
    "LayerNorm": (normstats.LayerNorm(5), {}),
    "LayerNorm, affine in float32": (normstats.LayerNorm(5, weight=WEIGHT, bias=WEIGHT), {}),
    "LayerNorm, affine in float64": (normstats.LayerNorm((4, 5), bias=np.outer([1, 2, 3, 4], BIAS)), {}),
    "RMSNorm": (normstats.RMSNorm(5, weight=BIAS), {}),
    "GroupNorm": (normstats.GroupNorm(2, 4), {}),
    "GroupNorm, mask": (normstats.GroupNorm(2, 4, weight=[1, 2, 3, 4]), {"mask": MASK}),
    "InstanceNorm": (normstats.InstanceNorm(4), {}),
    "InstanceNorm, lengths": (normstats.InstanceNorm(4), {"lengths": LENGTHS}),
    "AdaptiveInstanceNorm": (normstats.AdaptiveInstanceNorm(), {"style": STYLE}),
    "MeanVarianceNorm": (normstats.MeanVarianceNorm((0, 2)), {}),
    "LpNorm, 1": (normstats.LpNorm(1, 1), {}),
    "LpNorm, 2": (normstats.LpNorm(2, 2), {}),
    "LocalResponseNorm": (normstats.LocalResponseNorm(3), {}),
    "Standardize by batch": (normstats.Standardize(4, channel_axis=1, clip=2), {"mode": "batch"}),
    "MinMax by batch": (normstats.MinMax(4, channel_axis=1, feature_range=(-1, 1)), {"mode": "batch"}),
}
KEPT: dict[str, normstats.Spec] = {
    "Standardize": normstats.Standardize(4, channel_axis=1),
    "Standardize by time": normstats.Standardize(4, channel_axis=1, half_life=10),
    "MinMax": normstats.MinMax(4, channel_axis=1),
    "BatchNorm, momentum": normstats.BatchNorm(4),
    "BatchNorm, average": normstats.BatchNorm(4, momentum=None),
    "BatchNorm, renorm": normstats.BatchNorm(4, renorm=(1.5, 0.5)),
}


def array(dtype: str) -> Any:
    """(6, 4, 5): torch's where numpy has no such type."""
    x = np.random.default_rng(1).normal(40, 9, (6, 4, 5))
    if dtype == "bool":
        return x > 40
    if dtype == "bfloat16":
        import torch

        return torch.from_numpy(x).bfloat16()
    return x.astype(dtype)


class Results:
    """What a server answered, by what was asked, and by how much longer the first of two same calls took."""

    def __init__(self, target: str) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.waited: dict[str, float] = {}
        self._target = target

    def __enter__(self) -> Results:
        self._client = normstats.connect(self._target).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(*error)

    def ask(self, what: str, call: Callable[[], Any]) -> None:
        began = time.perf_counter()
        answer = call()
        first = time.perf_counter() - began
        began = time.perf_counter()
        call()
        self.waited[what] = first - (time.perf_counter() - began)
        self.values[what] = np.asarray(answer.float() if hasattr(answer, "float") else answer)

    def everything(self, dtype: str) -> None:
        """The README's normalizations of one type."""
        client, x = self._client, array(dtype)
        for what, (spec, options) in INLINE.items():
            self.ask(f"{what} of {dtype}", lambda s=spec, o=options: client.normalize(x, s, **o))  # type: ignore[misc]
        for what, spec in KEPT.items():
            self.kept(f"{what} of {dtype}", spec, x)

    def kept(self, what: str, spec: normstats.Spec, x: Any) -> None:
        """A normalizer that learns from x; a batch of now weighs differently each time."""
        kept = self._client.create(f"first/{uuid4().hex}", spec)
        if "by time" not in what:
            self.ask(f"{what}, trained", lambda: kept.normalize(x, mode="train"))
        time_ = 1.7e9 if "by time" in what else None
        self.ask(f"{what}, updates", lambda: kept.update(x, time=time_).version)
        self.ask(what, lambda: kept.normalize(x))
        self.ask(f"{what}, mean", lambda: kept.stats().mean)
        kept.snapshot("then")
        kept.update(x, time=time_)
        self.ask(f"{what}, drift", lambda: kept.compare("then").mean_shift)


def raw_batch(server: ServerProcess, name: str, x: np.ndarray) -> None:
    """An update whose moments the server takes."""
    request = pb.UpdateRunningStatsRequest(producer_id=b"p" * 16, sequence=1, data=x.tobytes())
    request.contributions.append(pb.Contribution(normalizer=name, raw=pb.Contribution.RawBatch(input=described(x))))
    with grpc.insecure_channel(server.target) as channel:
        NormalizationServiceStub(channel).UpdateRunningStats(request, timeout=10)


@pytest.fixture
def first(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that has no compiled kernels, and a folder of its own for them. Not started."""
    server = ServerProcess(tmp_path, prefix=("env", f"NUMBA_CACHE_DIR={tmp_path / 'kernels'}", ONLY_THERE))
    yield server
    server.stop()


def assert_same(meanwhile: Results, compiled: Results) -> None:
    """Outputs of up to 32 bits are, to the bit; float64, and what is made of it, to some ulps of moments' sums."""
    for what, value in compiled.values.items():
        if value.dtype == np.float64:
            np.testing.assert_allclose(meanwhile.values[what], value, rtol=1e-13, atol=1e-13, err_msg=what)
        else:
            np.testing.assert_array_equal(meanwhile.values[what], value, err_msg=what)


def kernels(server: ServerProcess) -> dict[str, int]:
    """normstats_kernels, by state."""
    lines = httpx.get(f"{server.http}/metrics").text.splitlines()
    found = [line.removeprefix("normstats_kernels{state=").split("} ") for line in lines if "kernels{" in line]
    return {state.strip('"'): int(float(number)) for state, number in found}


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def until_compiled(server: ServerProcess) -> None:
    until(lambda: kernels(server)["pending"] == 0, COMPILES_SECONDS)


def children(server: ServerProcess) -> list[int]:
    """The processes that it started."""
    found = []
    for path in Path(f"/proc/{Process(server).pid}/task").glob("*/children"):
        found += [int(pid) for pid in path.read_text().split()]
    return found


def begin(first: ServerProcess) -> None:
    """Start, and have the first answers."""
    first.start()
    with normstats.connect(first.target) as client:
        x = array("float32")
        kept = client.create("first", normstats.Standardize(4, channel_axis=1))
        kept.update(x)
        kept.normalize(x)
    raw_batch(first, "first", x)


@pytest.mark.timeout(600)  # where no test before it had the usual kernels compiled
def test_it_answers_at_once_and_no_call_waits_and_bits_are_those_of_compiled_kernels(
    first: ServerProcess, server: ServerProcess
) -> None:
    begin(first)
    assert Process(first).cpu_seconds() < CPU_SECONDS
    assert kernels(first)["pending"] > 20
    progress = httpx.get(f"{first.http}/readyz")
    assert progress.status_code == 200
    assert progress.text.startswith("ok: 0 of ")
    with Results(first.target) as meanwhile:
        for dtype in BY_NAME:
            meanwhile.everything(dtype)
    late = {what: seconds for what, seconds in meanwhile.waited.items() if seconds > WAITS_SECONDS}
    assert not late
    with Results(server.target) as compiled:
        compiled.everything("float32")
        until_compiled(server)
        compiled.everything("float32")
    assert len(compiled.values) > 40
    assert_same(meanwhile, compiled)


@pytest.mark.faults
def test_alone_it_answers_within_seconds(first: ServerProcess) -> None:
    began = time.monotonic()
    begin(first)
    assert time.monotonic() - began < SERVES_SECONDS


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_every_type_by_the_reference_is_what_compiled_kernels_give(first: ServerProcess) -> None:
    first.start()
    began = time.monotonic()
    with Results(first.target) as meanwhile, Results(first.target) as compiled:
        for dtype in BY_NAME:
            meanwhile.everything(dtype)
        until(lambda: kernels(first)["pending"] == 0, 1500)
        assert kernels(first)["failed"] == 0
        assert httpx.get(f"{first.http}/readyz").text == "ok\n"
        for dtype in BY_NAME:
            compiled.everything(dtype)
    print(f"all compiled after {time.monotonic() - began:.0f} s")
    assert_same(meanwhile, compiled)


def test_where_the_compiling_process_is_killed_the_reference_goes_on(first: ServerProcess) -> None:
    first.start()
    until(lambda: bool(children(first)), 20)
    (child,) = children(first)
    os.kill(child, signal.SIGKILL)
    until(lambda: kernels(first)["pending"] == 0, 20)
    assert kernels(first) == {"compiled": 0, "pending": 0, "failed": 32}
    assert first.log().count("ended with -9") == 1
    assert httpx.get(f"{first.http}/readyz").text == "ok\n"
    with normstats.connect(first.target) as client:
        np.testing.assert_allclose(client.normalize(np.array([[1.0, 3.0]]), normstats.LayerNorm(2, eps=0)), [[-1, 1]])
    assert first.terminate() == 0


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_after_a_kill_the_next_process_goes_on_with_the_others(first: ServerProcess) -> None:
    first.start()
    until(lambda: kernels(first)["compiled"] > 1, 200)
    (child,) = children(first)
    os.kill(child, signal.SIGKILL)
    until(lambda: kernels(first)["failed"] == 1, 20)
    before = kernels(first)["compiled"]
    until(lambda: kernels(first)["compiled"] > before + 1, 200)
    assert kernels(first)["failed"] == 1
    assert child not in children(first)


@pytest.fixture
def homeless(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that can write kernels nowhere but to its folder of temporary files. Not started."""
    (tmp_path / "tmp").mkdir()
    prefix = ("env", "NUMBA_CACHE_DIR=/proc/nowhere", ONLY_THERE, f"TMPDIR={tmp_path / 'tmp'}")
    server = ServerProcess(tmp_path, prefix=prefix)
    yield server
    server.stop()


def test_where_nothing_can_be_kept_it_says_what_to_set_and_a_stop_leaves_nothing_behind(
    homeless: ServerProcess, tmp_path: Path
) -> None:
    homeless.start()
    until(lambda: bool(children(homeless)), 20)
    (child,) = children(homeless)
    assert homeless.log().count("set NUMBA_CACHE_DIR to a folder") == 1
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    began = time.monotonic()
    assert homeless.terminate() == 0
    assert time.monotonic() - began < 5
    assert not Path(f"/proc/{child}").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_where_nothing_can_be_kept_it_compiles_for_this_run(homeless: ServerProcess) -> None:
    homeless.start()
    until(lambda: kernels(homeless)["compiled"] > 1, 200)
    assert kernels(homeless)["failed"] == 0


def compiling(folder: Path, questions: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    with questions.open() as asked:
        return subprocess.Popen(
            [sys.executable, "-m", "normcore.kernels", "-"],
            env=environment,
            stdin=asked,
            stdout=subprocess.PIPE,
            text=True,
        )


def test_processes_that_share_a_folder_keep_one_copy_and_mend_what_was_cut_short(tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    questions.write_text("total float64 float64\nnothing float64 float64\n")
    for number in (2, 1):
        several = [compiling(tmp_path, questions) for _ in range(number)]
        for one in several:
            compiled, failed = one.communicate(timeout=120)[0].splitlines()
            assert compiled == "compiled total float64 float64"
            assert failed.startswith("failed nothing float64 float64: ")
        files = sorted(tmp_path.rglob("*.nb?"))
        assert [path.suffix for path in files] == [".nbc", ".nbi"]
        assert all(path.stat().st_size > 100 for path in files)
        for path in files:
            path.write_bytes(path.read_bytes()[:100])


SWITCHES = """
import sys, torch
from pathlib import Path
import normcore
from normcore.kernels.base import NotCompiled
from normcore.kernels.cpu import compiled
asked = []
compiled.compile_elsewhere(asked.append)
x = torch.randn(3, 16)
meanwhile = normcore.layer_norm(x, 16)
try:
    sys.exit(f"made ready without a kernel: {normcore.layer_norm_like(x, 16)}")
except NotCompiled:
    pass
assert [str(one) for one in asked] == ["short_rows float32 float64"], asked
compiled.compile_elsewhere(None)  # what another process does
compiled.KERNELS["short_rows"].of(torch.float32)
launch, y = normcore.layer_norm_like(x, 16), torch.empty(3, 16)
launch(x.data_ptr(), y.data_ptr())
assert y.equal(meanwhile) and normcore.layer_norm(x, 16).equal(meanwhile)
"""


def test_nothing_is_made_ready_by_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    """So what was asked for while it was missing is by the compiled kernel afterwards."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", SWITCHES], env=environment, check=True, timeout=120)
