"""Where normalizations are computed: the device gets what it was seen to do faster, and no more."""

from __future__ import annotations

import math

import pytest
import torch

from normserver.engine import CPU, Batch, Mode, Plan
from normserver.placement import SIZES_BYTES, Operation, Placement, Trial, by_trial, crossover, everything_on, pick
from normserver.staging import Staging
from normstats import specs

DEVICE = torch.device("cuda")
LAYER = Plan(specs.LayerNorm(4), Mode.BATCH)
GIVEN = Plan(specs.BatchNorm(4), Mode.EVAL)
OWN = Plan(specs.Standardize(4), Mode.BATCH)


def trials(*faster: bool) -> list[Trial]:
    return [Trial(Operation.ROWS, 1 << (10 + index), 2.0, 1.0 if one else 3.0) for index, one in enumerate(faster)]


@pytest.mark.parametrize(
    ("faster", "expected"),
    [
        ((False, False, True, True), 1 << 12),
        ((True, True, True), 1 << 10),
        ((True, False, True), 1 << 12),
        ((True, True, False), math.inf),
        ((), math.inf),
    ],
)
def test_the_device_is_used_from_where_it_stays_faster(faster: tuple[bool, ...], expected: float) -> None:
    assert crossover(Operation.ROWS, trials(*faster)) == expected
    assert crossover(Operation.GIVEN, trials(*faster)) == math.inf


def test_each_operation_has_its_own_size() -> None:
    def measure(operation: Operation, size_bytes: int, device: torch.device) -> float:
        launch, per_byte = (20e-6, 1e-11) if device == DEVICE else (2e-6, 1e-10)
        slower = {Operation.ROWS: 1, Operation.GIVEN: 1e9, Operation.BATCH: 1e-3}[operation]
        return (launch * slower if device == DEVICE else launch) + size_bytes * per_byte

    placement = by_trial(DEVICE, measure)
    assert placement.from_bytes == {Operation.ROWS: 1 << 18, Operation.GIVEN: math.inf, Operation.BATCH: SIZES_BYTES[0]}
    assert len(placement.trials) == 3 * len(SIZES_BYTES)
    small, large = torch.ones(1024, 4), torch.ones(1 << 16, 4)
    assert [placement.of(LAYER, x) for x in (small, large)] == [CPU, DEVICE]
    assert [placement.of(GIVEN, x) for x in (small, large)] == [CPU, CPU]
    assert [placement.of(OWN, x) for x in (small, large)] == [DEVICE, DEVICE]
    assert placement.of_moments(small) == DEVICE


def test_trials_are_of_real_normalizations() -> None:
    placement = by_trial(CPU)
    assert all(0 < one.cpu_seconds < 10 for one in placement.trials)
    assert placement.of(LAYER, torch.ones(1 << 16, 4)) == CPU


def test_what_is_asked_for_is_used_for_everything() -> None:
    assert pick("cpu").of(OWN, torch.ones(1 << 20)) == CPU
    everything: Placement = everything_on(DEVICE)
    assert everything.of(LAYER, torch.ones(1)) == DEVICE


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_the_processor_and_cuda_an_error() -> None:
    assert pick("auto").device == CPU
    with pytest.raises(ValueError, match="no CUDA device"):
        pick("cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_by_way_of_pinned_memory_nothing_changes() -> None:
    x = torch.randn(4096, 256, generator=torch.Generator().manual_seed(3))
    plan, staging = Plan(specs.LayerNorm(256), Mode.BATCH), Staging()
    for _ in range(3):
        y = staging.normalize(plan, Batch(x), DEVICE).y
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (256,)))
