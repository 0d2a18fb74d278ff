"""A normalize's way: what is wanted, with the statistics it needs, becomes a plan; the plan runs on the device."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from time import perf_counter

from torch import Tensor

from normcore.errors import NormcoreError, NothingSeen
from normcore.running import Estimate, Running
from normcore.stack import MomentsStack
from normserver import codec, engine
from normserver.codec import Encoded, Reply
from normserver.compute import Compute, Kept
from normserver.engine import Batch, Mode, Plan
from normserver.errors import FailedPrecondition, InvalidArgument, from_engine, keeps_no_statistics
from normserver.normalizers import Normalizers
from normserver.published import Published
from normserver.records import policy_of, start
from normserver.validate import Wanted
from normstats import specs

# What took less when it was last done is done on the event loop: handing it to a thread takes as long.
_BRIEF_SECONDS, _BRIEF_BYTES = 100e-6, 1 << 17
# Kinds of calls whose times are remembered.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Resolved:
    """A plan, and the version of the statistics in it: 0 without a normalizer."""

    plan: Plan
    version: int


class Normalizing:
    """Plans and runs normalizations."""

    def __init__(self, published: Published, normalizers: Normalizers, compute: Compute) -> None:
        self._published = published
        self._normalizers = normalizers
        self._compute = compute
        self._kept = Kept()
        self._seconds: dict[Hashable, float] = {}

    async def resolve(self, wanted: Wanted, *, style: Tensor | None = None) -> Resolved:
        """Find the spec and the statistics that are wanted.

        Raises:
            NotFound: there is no such normalizer or snapshot.
            FailedPrecondition: running statistics are wanted where there are none.
            InvalidArgument: what is wanted does not go together.
        """
        spec, running, version = await self._target(wanted)
        mode = _mode(wanted, spec, running)
        if wanted.inverse and not (mode is Mode.EVAL and isinstance(spec, specs.RunningSpec)):
            raise InvalidArgument(
                "inverse",
                f"is set; {type(spec).__name__} in {mode.name} mode uses the batch's own statistics, which the output "
                "no longer holds: only EVAL of BatchNorm, Standardize and MinMax can be undone",
            )
        plan = Plan(
            spec,
            mode,
            inverse=wanted.inverse,
            estimate=_estimate(spec, running, mode),
            style=await self._style(spec, wanted.style_normalizer, style),
        )
        return Resolved(plan, version)

    async def run(self, plan: Plan, batch: Batch, reply: Reply, *, prefix: str = "") -> Encoded:
        """Normalize a batch on the device, for a reply that lacks nothing else."""
        if batch.x.nbytes > _BRIEF_BYTES:
            return await self._compute.run(lambda: self._normalize(plan, batch, reply), prefix=prefix)
        padded = batch.lengths is not None or batch.mask is not None
        kind = type(plan.spec), plan.mode, plan.inverse, batch.x.dtype, batch.x.shape, padded
        brief = self._seconds.get(kind, inf) < _BRIEF_SECONDS  # the first of a kind may have to be compiled
        return await self._compute.run(lambda: self._timed(kind, plan, batch, reply), prefix=prefix, brief=brief)

    def _timed(self, kind: Hashable, plan: Plan, batch: Batch, reply: Reply) -> Encoded:
        begun = perf_counter()
        encoded = self._normalize(plan, batch, reply)
        if len(self._seconds) >= _REMEMBERED:
            self._seconds.clear()
        self._seconds[kind] = perf_counter() - begun
        return encoded

    def _normalize(self, plan: Plan, batch: Batch, reply: Reply) -> Encoded:
        """Into memory that this thread keeps, as new pages cost more than arithmetic; and out of it into a reply."""
        out = engine.output_of(batch, self._kept.memory) if self._compute.device.type == "cpu" else None
        found = engine.normalize(plan, batch, self._compute.device, out)
        return Encoded(codec.encode_tensor(reply, found.y), found.y.nbytes, found.batches)

    async def moments(self, spec: specs.RunningSpec, batch: Batch, *, prefix: str) -> MomentsStack:
        """The moments of a raw batch."""
        taken = await self._compute.run(lambda: engine.moments(spec, batch, self._compute.device), prefix=prefix)
        stack = MomentsStack.of(taken) if taken else MomentsStack.empty(spec.num_features)
        codec.check_mergeable(stack, [f"{prefix}input"] * len(stack))
        return stack

    async def _target(self, wanted: Wanted) -> tuple[specs.Spec, Running | None, int]:
        if not isinstance(wanted.target, str):
            return wanted.target, start(wanted.target), 0
        record = await self._published.get(wanted.target)
        if not wanted.snapshot:
            return record.spec, record.running, record.version
        record.statistics()
        snapshot = await self._normalizers.snapshot(record.name, wanted.snapshot)
        return record.spec, snapshot.running, snapshot.version

    async def _style(self, spec: specs.Spec, name: str, style: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if not isinstance(spec, specs.AdaptiveInstanceNorm):
            if name or style is not None:
                raise InvalidArgument("style", f"is given; {type(spec).__name__} takes none")
            return None
        if style is not None:
            return await self._compute.run(lambda: engine.style_of(spec, style.to(self._compute.device)))
        if not name:
            raise InvalidArgument("style", "is not given; AdaptiveInstanceNorm takes a tensor or a normalizer's name")
        record = await self._published.get(name)
        running_spec, running = record.statistics()
        estimate = _estimate(running_spec, running, Mode.EVAL)
        assert estimate is not None, "EVAL has an estimate or an error"
        return estimate.mean, (estimate.var + spec.eps).sqrt()


def _mode(wanted: Wanted, spec: specs.Spec, running: Running | None) -> Mode:
    if not isinstance(spec, specs.RunningSpec):
        if wanted.mode is Mode.TRAIN:
            raise keeps_no_statistics(str(wanted.target))
        return Mode.BATCH  # there is but one way: by each sample's own statistics
    if wanted.mode is not None:
        return wanted.mode
    named = isinstance(wanted.target, str)
    seeded = running is not None and bool(running.moments.count.any())
    return Mode.EVAL if named or seeded else Mode.BATCH


def _estimate(spec: specs.Spec, running: Running | None, mode: Mode) -> Estimate | None:
    """The running statistics, where the mode looks at them."""
    if not isinstance(spec, specs.RunningSpec) or running is None:
        return None
    renormalizes = isinstance(spec, specs.BatchNorm) and spec.renorm is not None and mode is Mode.TRAIN
    if mode is not Mode.EVAL and not renormalizes:
        return None
    try:
        return policy_of(spec).estimate(running)
    except NormcoreError as error:
        if renormalizes:
            return None  # the very first batch has nothing to be corrected toward
        if not isinstance(error, NothingSeen):
            raise from_engine(error) from error
        raise FailedPrecondition(
            f"EVAL needs running statistics, and feature {error.feature} has seen nothing yet; contribute first, or "
            "use BATCH mode",
            field="mode",
            reason="NOTHING_SEEN",
        ) from error
