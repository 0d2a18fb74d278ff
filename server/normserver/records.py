"""What a normalizer is at one version, and what a snapshot holds: frozen values, made new with each commit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from normcore.running import BatchAverage, BatchEma, Cumulative, Running, RunningPolicy, TimeEma
from normserver.errors import keeps_no_statistics
from normstats.specs import BatchNorm, MinMax, RunningSpec, Spec, Standardize


@dataclass(frozen=True, slots=True)
class Record:
    """A normalizer at one version.

    `spec` holds the present affine parameters; `running` is None where the spec keeps no statistics; times are seconds
    since the epoch.
    """

    name: str
    spec: Spec
    version: int
    running: Running | None
    frozen: bool
    created_at: float
    updated_at: float

    @property
    def stopped(self) -> bool:
        """Whether it has stopped by itself: as many rows were merged as freeze_after says."""
        return self.running is not None and has_stopped(self.spec, rows(self.running))

    def statistics(self) -> tuple[RunningSpec, Running]:
        """The spec and its running statistics.

        Raises:
            FailedPrecondition: it keeps none.
        """
        if self.running is None or not isinstance(self.spec, RunningSpec):
            raise keeps_no_statistics(self.name)
        return self.spec, self.running


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """Running statistics under a tag."""

    normalizer: str
    tag: str
    version: int
    running: Running
    created_at: float


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a group's rounds, as of one grant: every grant has a higher token than those before."""

    group: str
    token: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Who has a lease, and for how many seconds from now on."""

    lease: Lease
    owner: str
    seconds: float


def policy_of(spec: RunningSpec) -> RunningPolicy:
    """How a spec turns batches into running statistics."""
    match spec:
        case MinMax():
            return Cumulative()
        case BatchNorm(half_life=float(seconds)) | Standardize(half_life=float(seconds)):
            return TimeEma(seconds)
        case BatchNorm(momentum=float(weight)) | Standardize(momentum=float(weight)):
            return BatchEma(weight)
        case BatchNorm():
            return BatchAverage()
        case Standardize():
            return Cumulative()


def start(spec: Spec) -> Running | None:
    """The statistics that a new normalizer has: none yet, or those that its spec gives."""
    if not isinstance(spec, RunningSpec):
        return None
    if isinstance(spec, BatchNorm) and spec.running_mean is not None:
        return policy_of(spec).seed(
            torch.from_numpy(spec.running_mean.copy()), torch.from_numpy(spec.running_var.copy())
        )
    return Running.empty(spec.num_features)


def rows(running: Running) -> float:
    """Rows ever merged: the largest over features."""
    return float(running.count.max())


def has_stopped(spec: Spec, count: float) -> bool:
    """Whether a normalizer of this spec stops by itself at this many rows."""
    return isinstance(spec, RunningSpec) and spec.freeze_after is not None and count >= spec.freeze_after
