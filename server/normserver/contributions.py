"""What a commit does, decided without any I/O: records and windows go in, records, windows and outcomes come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from normcore.errors import NormcoreError
from normcore.running import Arrival, Running, RunningPolicy
from normcore.stack import MomentsStack
from normserver.errors import (
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
    ServiceError,
    from_engine,
    lost_lease,
    no_such_normalizer,
    too_many_producers,
)
from normserver.producers import WINDOW, Producer, Verdict, Window
from normserver.records import Lease, Record, has_stopped, policy_of, rows
from normstats.specs import RunningSpec

# How far a worker's clock may be ahead of the server's.
MAX_AHEAD_SECONDS = 300.0

_NEW = Window()


@dataclass(frozen=True, slots=True)
class Contribution:
    """The moments of one or more batches, in order, for one normalizer. `field` is its path in the request."""

    name: str
    batches: MomentsStack
    observed_at: float | None
    field: str


@dataclass(frozen=True, slots=True)
class Submission:
    """What one producer sends under one sequence: merged all or none, and only while `lease` is held, if given.

    `payer` is the identity whose budget of new producers it is taken from, if the store does not know the producer.
    """

    producer: Producer
    sequence: int
    contributions: Sequence[Contribution]
    lease: Lease | None = None
    payer: str = ""


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
    """What to write, and what to tell each submission, in order; how many producers of each payer are new."""

    records: Sequence[Record]
    windows: Mapping[Producer, Window]
    outcomes: Sequence[Outcome | ServiceError]
    new_producers: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Pending:
    """What this commit has gathered for one normalizer so far."""

    record: Record
    spec: RunningSpec
    running: Running
    policy: RunningPolicy
    batches: list[MomentsStack] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    count: float = 0.0  # rows, kept up to date only where the spec stops at some


class _Clock(NamedTuple):
    """The wall clock, and the same without its steps."""

    now: float
    steady: float


class _Admitted(NamedTuple):
    """A submission that changes nothing, or is gathered; for each of its contributions whether that was left out."""

    duplicate: bool
    targets: Sequence[_Pending]
    stopped: Sequence[bool]


def decide(
    records: Mapping[str, Record],
    windows: Mapping[Producer, Window],
    submissions: Sequence[Submission],
    now: float,
    held: Set[Lease] = frozenset(),
    budgets: Mapping[str, int] | None = None,
    *,
    steady: float | None = None,
) -> Decision:
    """Merge submissions, in order, into the records as they stand; `held` are the leases that still hold.

    `budgets` say how many new producers some payers may still have. One that is known is never refused for it.

    `now` is the wall clock, which a record's update time shows. `steady` is the same clock without its steps (`now`, if
    it is not given): contributions that give no time were observed then, so that a step neither forgets what a
    half-life weighs nor freezes it.

    A submission that its window has seen is told so and changes nothing; one that cannot be merged, in any part,
    gets its error, changes nothing and does not use up its sequence. Each record that changes goes up one version,
    however many contributions it takes in; all of them are told that version.
    """
    clock = _Clock(now, now if steady is None else steady)
    after = dict(windows)
    left = dict(budgets or {})
    gathered: dict[str, _Pending] = {}
    admitted: list[_Admitted | ServiceError] = []
    for submission in submissions:
        try:
            if submission.lease is not None and submission.lease not in held:
                raise lost_lease(submission.lease.group)
            admitted.append(_admit(submission, records, after, gathered, clock, left))
        except ServiceError as error:
            admitted.append(error)
    changed = _merged(gathered.values(), now)
    versions = {name: pending.record.version for name, pending in gathered.items()}
    versions |= {record.name: record.version for record in changed}
    changed_windows = {producer: window for producer, window in after.items() if windows.get(producer) != window}
    outcomes = [one if isinstance(one, ServiceError) else _outcome(one, versions) for one in admitted]
    new_producers = {payer: budget - left[payer] for payer, budget in (budgets or {}).items() if left[payer] < budget}
    return Decision(changed, changed_windows, outcomes, new_producers)


def _admit(
    submission: Submission,
    records: Mapping[str, Record],
    windows: dict[Producer, Window],
    gathered: dict[str, _Pending],
    clock: _Clock,
    left: dict[str, int],
) -> _Admitted:
    window = windows.get(submission.producer, _NEW)
    verdict = window.verdict(submission.sequence)
    if verdict is Verdict.TOO_OLD:
        raise OutOfRange(
            f"sequence is {submission.sequence}; this producer is at {window.highest}, and only the last {WINDOW} are "
            "remembered: whether it was counted cannot be told",
            field="sequence",
        )
    targets = [_target(contribution, records, gathered) for contribution in submission.contributions]
    if verdict is Verdict.SEEN:
        return _Admitted(True, targets, [False] * len(targets))
    together = list(zip(submission.contributions, targets, strict=True))
    times = [_check(contribution, target, clock) for contribution, target in together]
    if submission.producer not in windows and submission.payer in left:
        if left[submission.payer] < 1:
            raise too_many_producers(submission.payer)
        left[submission.payer] -= 1
    windows[submission.producer] = window.add(submission.sequence)
    taken = [_gather(*one, time) for one, time in zip(together, times, strict=True)]
    return _Admitted(False, targets, [not some for some in taken])


def _outcome(admitted: _Admitted, versions: Mapping[str, int]) -> Outcome:
    together = zip(admitted.targets, admitted.stopped, strict=True)
    contributed = [
        Contributed(target.record.name, versions[target.record.name], stopped) for target, stopped in together
    ]
    return Outcome(admitted.duplicate, contributed)


def _target(contribution: Contribution, records: Mapping[str, Record], gathered: dict[str, _Pending]) -> _Pending:
    record = records.get(contribution.name)
    if record is None:
        raise no_such_normalizer(contribution.name)
    if contribution.name not in gathered:
        spec, running = record.statistics()
        gathered[contribution.name] = _Pending(record, spec, running, policy_of(spec))
        if spec.freeze_after is not None:
            gathered[contribution.name].count = rows(running)
    return gathered[contribution.name]


def _check(contribution: Contribution, target: _Pending, clock: _Clock) -> float:
    """Check that a contribution can be merged; returns when it was observed.

    Without a time of its own that is now, but never before what the normalizer has seen.
    """
    if target.record.frozen:
        raise FailedPrecondition(
            f"normalizer {contribution.name!r} is frozen; unfreeze it to contribute", reason="NORMALIZER_FROZEN"
        )
    width, batches = target.spec.num_features, contribution.batches
    if len(batches) and batches.num_features != width:
        raise InvalidArgument(
            contribution.field, f"has {batches.num_features} features; normalizer {contribution.name!r} has {width}"
        )
    given, latest = contribution.observed_at, max(clock)
    time = max(clock.steady, target.running.time) if given is None else given
    if given is not None and given > latest + MAX_AHEAD_SECONDS:
        raise InvalidArgument(
            f"{contribution.field}.observe_time",
            f"is {given - latest:.0f} s ahead of the server's clock; expected at most {MAX_AHEAD_SECONDS:.0f}: by "
            "time, what is to come would outweigh all that was",
        )
    try:
        target.policy.check(batches)
    except NormcoreError as error:
        raise from_engine(error, f"{contribution.field}.") from error
    return time


def _gather(contribution: Contribution, target: _Pending, time: float) -> bool:
    """Put a contribution with all others of this commit, to be merged at once; False where it has stopped by itself."""
    if has_stopped(target.spec, target.count):
        return False
    batches = contribution.batches
    if len(batches):
        target.batches.append(batches)
        target.times.extend([time] * len(batches))
        if target.spec.freeze_after is not None:
            target.count += float(batches.counts.sum(0).max())
    return True


def _merged(gathered: Iterable[_Pending], now: float) -> list[Record]:
    """The next versions of all for which something was gathered; those of one policy are merged side by side."""
    alike: dict[RunningPolicy, list[_Pending]] = {}
    for pending in gathered:
        if pending.batches:
            alike.setdefault(pending.policy, []).append(pending)
    changed = []
    for policy, some in alike.items():
        arrivals = [Arrival(pending.running, MomentsStack.cat(pending.batches), pending.times) for pending in some]
        for pending, running in zip(some, policy.absorb(arrivals), strict=True):
            if running.num_batches > pending.running.num_batches:  # not all of them were empty
                version = pending.record.version + 1
                changed.append(replace(pending.record, running=running, version=version, updated_at=now))
    return changed
