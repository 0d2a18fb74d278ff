"""Where each normalization is computed: on the GPU where that was seen to be faster, its transfers included."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from time import perf_counter

import torch
from torch import Tensor

from normcore.running import Estimate
from normserver import engine
from normserver.engine import CPU, Batch, Mode, Plan
from normserver.staging import Staging
from normstats import specs


class Operation(Enum):
    """What takes about as long for all that does it."""

    ROWS = "each sample by its own statistics"
    GIVEN = "by given statistics"
    BATCH = "by the batch's own statistics"


# Tensors of so many bytes are tried, by each operation, so many times.
SIZES_BYTES = tuple(1 << exponent for exponent in range(12, 27, 2))
_ROUNDS, _FEATURES = 3, 1024

Measure = Callable[[Operation, int, torch.device], float]


@dataclass(frozen=True, slots=True)
class Trial:
    """How long one operation took with tensors of one size, on the CPU and on the device."""

    operation: Operation
    size_bytes: int
    cpu_seconds: float
    device_seconds: float


class Placement:
    """A device, and from which size on it is used for what; infinite is never."""

    def __init__(
        self, device: torch.device, from_bytes: Mapping[Operation, float], trials: Sequence[Trial] = ()
    ) -> None:
        self.device = device
        self.from_bytes = from_bytes
        self.trials = trials

    def try_again(self) -> None:
        """Try anew what was tried: kernels have been compiled since."""
        if self.trials:
            again = by_trial(self.device)
            self.from_bytes, self.trials = again.from_bytes, again.trials

    def of(self, plan: Plan, x: Tensor) -> torch.device:
        """Where a batch is normalized by a plan."""
        return self.of_size(plan, x.nbytes)

    def of_size(self, plan: Plan, size_bytes: int) -> torch.device:
        """Where batches of so many bytes are."""
        return self.device if self.device == CPU or size_bytes >= self.from_bytes[_operation(plan)] else CPU

    def of_moments(self, x: Tensor) -> torch.device:
        """Where a batch's moments are taken."""
        return self.device if self.device == CPU or x.nbytes >= self.from_bytes[Operation.BATCH] else CPU


def pick(name: str) -> Placement:
    """The placement of a --device: cpu or cuda for everything, auto by trial where there is a GPU.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    if name == "auto":
        return by_trial(torch.device("cuda")) if torch.cuda.is_available() else everything_on(CPU)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no CUDA device that torch {torch.__version__} can use")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return everything_on(device)


def everything_on(device: torch.device) -> Placement:
    """One device for all."""
    return Placement(device, dict.fromkeys(Operation, 0.0))


def by_trial(device: torch.device, measure: Measure | None = None) -> Placement:
    """Each operation where it is faster, from the size on from which that holds: a second or two of the start."""
    measure = measure or _seconds
    trials = [
        Trial(operation, size, measure(operation, size, CPU), measure(operation, size, device))
        for operation in Operation
        for size in SIZES_BYTES
    ]
    return Placement(device, {operation: crossover(operation, trials) for operation in Operation}, trials)


def crossover(operation: Operation, trials: Sequence[Trial]) -> float:
    """The size from which on the device was faster each time; infinite if it was not with the largest."""
    found = math.inf
    for trial in sorted((one for one in trials if one.operation is operation), key=lambda one: -one.size_bytes):
        if trial.device_seconds >= trial.cpu_seconds:
            break
        found = trial.size_bytes
    return found


def _operation(plan: Plan) -> Operation:
    if not isinstance(plan.spec, specs.RunningSpec):
        return Operation.ROWS
    return Operation.GIVEN if plan.mode is Mode.EVAL or plan.moments is not None else Operation.BATCH


def _seconds(operation: Operation, size_bytes: int, device: torch.device) -> float:
    """How long a tensor of so many bytes takes from host memory and back to it; the median of some."""
    x = torch.ones(size_bytes // 4 // _FEATURES or 1, _FEATURES)
    ones = torch.ones(_FEATURES, dtype=torch.float64)
    plan = {
        Operation.ROWS: Plan(specs.LayerNorm(_FEATURES), Mode.BATCH),
        Operation.GIVEN: Plan(
            specs.BatchNorm(_FEATURES), Mode.EVAL, estimate=Estimate(ones, ones, ones, ones, ones, ddof=1)
        ),
        Operation.BATCH: Plan(specs.BatchNorm(_FEATURES), Mode.BATCH),
    }[operation]
    out, staging, took = torch.empty_like(x), Staging(), []
    for _ in range(_ROUNDS + 1):  # the first compiles
        begun = perf_counter()
        if device == CPU:
            engine.normalize(plan, Batch(x), device, out)
        else:
            out.copy_(staging.normalize(plan, Batch(x), device).y)
        took.append(perf_counter() - begun)
    return statistics.median(took[1:])
