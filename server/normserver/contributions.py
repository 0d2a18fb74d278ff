"""What a commit does, decided without any I/O: records and windows go in, records, windows and outcomes come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from normcore.errors import NormcoreError
from normcore.moments import Moments
from normcore.running import Running, RunningPolicy
from normserver.errors import (
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
    ServiceError,
    from_engine,
    no_such_normalizer,
)
from normserver.producers import WINDOW, Verdict, Window
from normserver.records import Record, has_stopped, policy_of, rows

# How far a worker's clock may be ahead of the server's.
MAX_AHEAD_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Contribution:
    """The moments of one or more batches, in order, for one normalizer. `field` is its path in the request."""

    name: str
    batches: Sequence[Moments]
    observed_at: float | None
    field: str


@dataclass(frozen=True, slots=True)
class Submission:
    """What one producer sends under one sequence: merged all or none."""

    producer: bytes
    sequence: int
    contributions: Sequence[Contribution]


@dataclass(frozen=True, slots=True)
class Contributed:
    """What became of a contribution to one normalizer; `stopped` if it had stopped by itself and left it out."""

    name: str
    version: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a submission."""

    duplicate: bool
    contributed: Sequence[Contributed]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write, and what to tell each submission, in order."""

    records: Sequence[Record]
    windows: Mapping[bytes, Window]
    outcomes: Sequence[Outcome | ServiceError]


@dataclass(slots=True)
class _Pending:
    """What this commit has gathered for one normalizer so far."""

    record: Record
    policy: RunningPolicy
    elements: list[Running] = field(default_factory=list)
    count: float = 0.0

    @property
    def version(self) -> int:
        return self.record.version + bool(self.elements)


def decide(
    records: Mapping[str, Record], windows: Mapping[bytes, Window], submissions: Sequence[Submission], now: float
) -> Decision:
    """Merge submissions, in order, into the records as they stand.

    A submission that its window has seen is told so and changes nothing; one that cannot be merged, in any part,
    gets its error, changes nothing and does not use up its sequence. Each record that changes goes up one version,
    however many contributions it takes in.
    """
    after = dict(windows)
    gathered: dict[str, _Pending] = {}
    outcomes: list[Outcome | ServiceError] = []
    for submission in submissions:
        try:
            outcomes.append(_admit(submission, records, after, gathered, now))
        except ServiceError as error:
            outcomes.append(error)
    changed = [_committed(pending, now) for pending in gathered.values() if pending.elements]
    changed_windows = {producer: window for producer, window in after.items() if windows.get(producer) != window}
    return Decision(changed, changed_windows, outcomes)


def _admit(
    submission: Submission,
    records: Mapping[str, Record],
    windows: dict[bytes, Window],
    gathered: dict[str, _Pending],
    now: float,
) -> Outcome:
    window = windows.get(submission.producer, Window())
    verdict = window.verdict(submission.sequence)
    if verdict is Verdict.TOO_OLD:
        raise OutOfRange(
            f"sequence is {submission.sequence}; this producer is at {window.highest}, and only the last {WINDOW} are "
            "remembered: whether it was counted cannot be told",
            field="sequence",
        )
    targets = [_target(contribution, records, gathered) for contribution in submission.contributions]
    if verdict is Verdict.SEEN:
        seen = [Contributed(t.record.name, t.version, stopped=False) for t in targets]
        return Outcome(duplicate=True, contributed=seen)
    elements = [
        _elements(contribution, target, now)
        for contribution, target in zip(submission.contributions, targets, strict=True)
    ]
    windows[submission.producer] = window.add(submission.sequence)
    return Outcome(False, [_gather(target, some) for target, some in zip(targets, elements, strict=True)])


def _target(contribution: Contribution, records: Mapping[str, Record], gathered: dict[str, _Pending]) -> _Pending:
    record = records.get(contribution.name)
    if record is None:
        raise no_such_normalizer(contribution.name)
    if contribution.name not in gathered:
        spec, running = record.statistics()
        gathered[contribution.name] = _Pending(record, policy_of(spec), count=rows(running))
    return gathered[contribution.name]


def _elements(contribution: Contribution, target: _Pending, now: float) -> Sequence[Running] | None:
    """The contribution's batches as elements of the normalizer's monoid; None where it has stopped by itself.

    They are composed later, with all others of this commit at once: one tree of merges instead of many small ones.
    """
    spec, running = target.record.statistics()
    if target.record.frozen:
        raise FailedPrecondition(
            f"normalizer {contribution.name!r} is frozen; unfreeze it to contribute", reason="NORMALIZER_FROZEN"
        )
    width = running.moments.mean.numel()
    for moments in contribution.batches:
        if moments.mean.numel() != width:
            raise InvalidArgument(
                contribution.field, f"has {moments.mean.numel()} features; normalizer {contribution.name!r} has {width}"
            )
    if has_stopped(spec, target.count):
        return None
    time = now if contribution.observed_at is None else contribution.observed_at
    if time > now + MAX_AHEAD_SECONDS:
        raise InvalidArgument(
            f"{contribution.field}.observe_time",
            f"is {time - now:.0f} s ahead of the server's clock; expected at most {MAX_AHEAD_SECONDS:.0f}: by time, "
            "what is to come would outweigh all that was",
        )
    try:
        return [target.policy.of(moments, time) for moments in contribution.batches if not moments.is_empty]
    except NormcoreError as error:
        raise from_engine(error, f"{contribution.field}.") from error


def _gather(target: _Pending, elements: Sequence[Running] | None) -> Contributed:
    if elements is None:
        return Contributed(target.record.name, target.version, stopped=True)
    target.elements.extend(elements)
    target.count += sum(rows(element) for element in elements)
    return Contributed(target.record.name, target.version, stopped=False)


def _committed(pending: _Pending, now: float) -> Record:
    _, running = pending.record.statistics()
    merged = pending.policy.compose_all([running, *pending.elements])
    return replace(pending.record, running=merged, version=pending.version, updated_at=now)
