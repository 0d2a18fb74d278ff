"""What is wanted of a normalization, with the statistics it needs, becomes a plan."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from normcore.errors import NormcoreError, NothingSeen
from normcore.running import Estimate, Running
from normserver import engine, validate
from normserver.bounded import Bounded
from normserver.compute import Compute
from normserver.engine import Mode, Plan, Resolved
from normserver.errors import FailedPrecondition, InvalidArgument, from_engine, keeps_no_statistics
from normserver.normalizers import Normalizers
from normserver.published import Published
from normserver.records import Record, policy_of, start, stored_bytes
from normserver.validate import Wanted
from normstats import specs

# Plans that are remembered, and what they and what they were made of may take.
_REMEMBERED, _REMEMBERED_BYTES = 256, 128 << 20


class _Target(NamedTuple):
    """A spec, with the statistics that are wanted and their version; `source` is what it was found in."""

    source: Record | specs.Spec
    spec: specs.Spec
    running: Running | None
    version: int


class Planner:
    """Makes plans. The same is wanted of the same statistics again and again, and is then the same plan."""

    def __init__(self, published: Published, normalizers: Normalizers, compute: Compute) -> None:
        self._published = published
        self._normalizers = normalizers
        self._compute = compute
        self._remembered: Bounded[tuple[object, Mode | None, bool], tuple[Record | specs.Spec, Resolved]] = Bounded(
            _REMEMBERED, _REMEMBERED_BYTES
        )

    async def resolve(self, wanted: Wanted, *, style: Tensor | None = None) -> Resolved:
        """Find the spec and the statistics that are wanted.

        Raises:
            NotFound: there is no such normalizer or snapshot.
            FailedPrecondition: running statistics are wanted where there are none.
            InvalidArgument: what is wanted does not go together.
        """
        if _is_particular(wanted) or style is not None:
            return await self._plan(wanted, await self._target(wanted), style)
        if (known := self.at_hand(wanted)) is not None:
            return known
        target = await self._target(wanted)
        resolved = await self._plan(wanted, target, None)
        if isinstance(target.source, Record) or validate.is_remembered(target.source):
            size_bytes = stored_bytes(target.spec) + resolved.plan.size_bytes
            self._remembered.put(_key(wanted), (target.source, resolved), size_bytes)
        return resolved

    def at_hand(self, wanted: Wanted) -> Resolved | None:
        """The plan for what is wanted, if it was made before of the same spec and statistics."""
        if _is_particular(wanted):
            return None
        source, resolved = self._remembered.get(_key(wanted), (None, None))
        target = wanted.target
        now = self._published.peek(target) if isinstance(target, str) else target
        return resolved if now is not None and now is source else None

    async def _plan(self, wanted: Wanted, target: _Target, style: Tensor | None) -> Resolved:
        _, spec, running, version = target
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

    async def _target(self, wanted: Wanted) -> _Target:
        if not isinstance(wanted.target, str):
            return _target_of(wanted.target)
        if not wanted.snapshot:
            return _target_of(await self._published.get(wanted.target))
        return _target_of(await self._normalizers.snapshot(wanted.target, wanted.snapshot))

    async def _style(self, spec: specs.Spec, name: str, style: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if not isinstance(spec, specs.AdaptiveInstanceNorm):
            if name or style is not None:
                raise InvalidArgument("style", f"is given; {type(spec).__name__} takes none")
            return None
        if style is not None:
            return await self._compute.run(lambda: engine.style_of(spec, style))
        if not name:
            raise InvalidArgument("style", "is not given; AdaptiveInstanceNorm takes a tensor or a normalizer's name")
        record = await self._published.get(name)
        running_spec, running = record.statistics()
        estimate = _estimate(running_spec, running, Mode.EVAL)
        assert estimate is not None, "EVAL has an estimate or an error"
        return estimate.mean, (estimate.var + spec.eps).sqrt()


def _is_particular(wanted: Wanted) -> bool:
    """Whether it takes more than a target and a mode."""
    return bool(wanted.snapshot or wanted.style_normalizer)


def _key(wanted: Wanted) -> tuple[object, Mode | None, bool]:
    target = wanted.target
    return target if isinstance(target, str) else id(target), wanted.mode, wanted.inverse


def _target_of(source: Record | specs.Spec) -> _Target:
    if isinstance(source, Record):
        return _Target(source, source.spec, source.running, source.version)
    return _Target(source, source, start(source), 0)


def _mode(wanted: Wanted, spec: specs.Spec, running: Running | None) -> Mode:
    if not isinstance(spec, specs.RunningSpec):
        if wanted.mode is Mode.TRAIN:
            raise keeps_no_statistics(str(wanted.target))
        return Mode.BATCH  # there is but one way: by each sample's own statistics
    if wanted.mode is not None:
        return wanted.mode
    named = isinstance(wanted.target, str)
    seeded = running is not None and not running.is_empty
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
