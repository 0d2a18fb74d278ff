"""What a commit decides, without any I/O: the whole result after each set of submissions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normcore import MomentsStack, Running, moments_of
from normserver.contributions import Contributed, Contribution, Decision, Outcome, Submission, decide
from normserver.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted
from normserver.producers import WINDOW, Producer, Window
from normserver.records import Record, policy_of
from normstats import specs

A, B = (Producer("anyone", id_ * 16) for id_ in (b"a", b"b"))
NOW = 1000.0


def record(name: str = "n", spec: specs.RunningSpec | None = None, *, frozen: bool = False) -> Record:
    spec = spec or specs.Standardize(1)
    return Record(name, spec, 1, Running.empty(spec.num_features), frozen, 0.0, 0.0)


def contribution(*batches: list[float], name: str = "n", observed_at: float | None = None) -> Contribution:
    moments = [moments_of(torch.tensor(values, dtype=torch.float64).reshape(-1, 1), 1) for values in batches]
    return Contribution(name, MomentsStack.of(moments), observed_at, "contributions[0]")


def submission(producer: Producer, sequence: int, *contributions: Contribution) -> Submission:
    return Submission(producer, sequence, contributions)


def decided(records: list[Record], *submissions: Submission, windows: dict[Producer, Window] | None = None) -> Decision:
    return decide({record.name: record for record in records}, windows or {}, submissions, NOW)


def mean_of(record: Record) -> float:
    assert record.running is not None
    return float(record.running.moments.mean[0])


def test_all_that_came_together_is_one_version() -> None:
    decision = decided([record()], submission(A, 1, contribution([1.0])), submission(B, 1, contribution([3.0], [5.0])))
    (after,) = decision.records
    assert (after.version, after.updated_at, mean_of(after)) == (2, NOW, 3.0)
    assert decision.windows == {A: Window(1, 1), B: Window(1, 1)}
    assert decision.outcomes == [Outcome(False, [Contributed("n", 2, False)])] * 2


def test_a_sequence_that_comes_twice_in_one_commit_is_counted_once() -> None:
    decision = decided([record()], *[submission(A, 1, contribution([2.0]))] * 3)
    assert [outcome.duplicate for outcome in decision.outcomes if isinstance(outcome, Outcome)] == [False, True, True]
    assert decision.records[0].running is not None
    assert decision.records[0].running.num_batches == 1


def test_a_duplicate_alone_writes_nothing() -> None:
    decision = decided([record()], submission(A, 7, contribution([2.0])), windows={A: Window(7, 1)})
    assert (decision.records, decision.windows) == ([], {})
    assert decision.outcomes == [Outcome(True, [Contributed("n", 1, False)])]


def test_what_is_too_old_is_refused() -> None:
    decision = decided([record()], submission(A, 1, contribution([2.0])), windows={A: Window(WINDOW + 1, 1)})
    assert (decision.records, decision.windows) == ([], {})
    assert isinstance(decision.outcomes[0], OutOfRange)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (contribution([1.0], name="nobody"), NotFound),
        (contribution([1.0], name="frozen"), FailedPrecondition),
        (contribution([1.0], name="wide"), InvalidArgument),
        (contribution([1.0], name="by batch"), InvalidArgument),
    ],
    ids=["unknown", "frozen", "of another width", "one row where two are needed"],
)
def test_one_bad_part_refuses_the_whole_and_leaves_its_neighbours_alone(
    bad: Contribution, error: type[Exception]
) -> None:
    records = [
        record(),
        record("frozen", frozen=True),
        record("wide", specs.Standardize(2)),
        record("by batch", specs.BatchNorm(1)),
    ]
    decision = decided(
        records, submission(A, 1, contribution([1.0]), bad), submission(B, 1, contribution([9.0])), windows={}
    )
    assert isinstance(decision.outcomes[0], error)
    assert decision.outcomes[1] == Outcome(False, [Contributed("n", 2, False)])
    assert [(after.name, mean_of(after)) for after in decision.records] == [("n", 9.0)]
    assert decision.windows == {B: Window(1, 1)}, "what is refused does not use up its sequence"


def test_an_empty_batch_is_counted_as_sent_and_changes_nothing() -> None:
    decision = decided([record()], submission(A, 1, contribution([])))
    assert decision.records == []
    assert decision.windows == {A: Window(1, 1)}
    assert decision.outcomes == [Outcome(False, [Contributed("n", 1, False)])]


def test_it_stops_by_itself_within_one_commit() -> None:
    spec = specs.Standardize(1, freeze_after=3)
    many = [submission(A, sequence, contribution([1.0, 2.0])) for sequence in (1, 2, 3)]
    decision = decided([record(spec=spec)], *many)
    stopped = [outcome.contributed[0].stopped for outcome in decision.outcomes if isinstance(outcome, Outcome)]
    assert stopped == [False, False, True]
    assert decision.records[0].stopped


def test_batches_of_one_contribution_are_steps_in_order() -> None:
    spec = specs.BatchNorm(1, momentum=0.5)
    decision = decided([record(spec=spec)], submission(A, 1, contribution([1.0, 3.0], [7.0, 9.0])))
    torchs = torch.nn.BatchNorm1d(1, momentum=0.5)
    for batch in ([1.0, 3.0], [7.0, 9.0]):
        torchs(torch.tensor(batch).reshape(-1, 1))
    (after,) = decision.records
    assert after.running is not None
    estimate = policy_of(spec).estimate(after.running)
    np.testing.assert_allclose(estimate.mean, torchs.running_mean, rtol=1e-6)
    np.testing.assert_allclose(estimate.var, torchs.running_var, rtol=1e-6)
    assert after.running.num_batches == 2


def test_by_time_what_was_observed_counts_not_what_arrived() -> None:
    spec = specs.Standardize(1, half_life=10)
    early, late = contribution([0.0], observed_at=90.0), contribution([3.0], observed_at=100.0)
    for order in ((early, late), (late, early)):
        decision = decided([record(spec=spec)], *[submission(A, i + 1, c) for i, c in enumerate(order)])
        assert mean_of(decision.records[0]) == pytest.approx(2.0, rel=1e-15)


@pytest.mark.parametrize("step", [-4 * 3600.0, 30 * 365 * 86400.0])
def test_a_step_of_the_wall_clock_does_not_decay_what_gives_no_time(step: float) -> None:
    spec = specs.Standardize(1, half_life=10)
    first = decided([record(spec=spec)], submission(A, 1, contribution([0.0]))).records[0]
    stepped = decide({"n": first}, {}, [submission(A, 2, contribution([3.0]))], NOW + step, steady=NOW + 10)
    (after,) = stepped.records
    assert after.updated_at == NOW + step
    assert mean_of(after) == pytest.approx(2.0), "the first weighs half"


def test_a_state_from_the_future_still_learns() -> None:
    """A server stamped it by a clock that was ahead, and was started again with one that is right."""
    spec = specs.Standardize(1, half_life=10)
    first = decide({"n": record(spec=spec)}, {}, [submission(A, 1, contribution([0.0]))], NOW + 1e9).records[0]
    (after,) = decided([first], submission(A, 2, contribution([3.0]))).records
    assert mean_of(after) == 1.5


def test_a_payers_budget_bounds_its_new_producers_alone() -> None:
    def asked(number: int, payer: str, sequence: int = 1, *, name: str = "n") -> Submission:
        producer = Producer(payer, bytes([number]) * 16)
        return Submission(producer, sequence, (contribution([1.0], name=name),), payer=payer)

    known = {Producer("a", bytes([9]) * 16): Window(1, 1)}
    submissions = [
        asked(9, "a", 2),
        asked(0, "a", name="nobody"),
        asked(1, "a"),
        asked(1, "a", 2),
        asked(2, "a"),
        asked(3, "a"),
        asked(9, "a", 3),
        asked(4, "free"),
    ]
    decision = decide({"n": record()}, known, submissions, NOW, budgets={"a": 2})
    refused = {index: one for index, one in enumerate(decision.outcomes) if not isinstance(one, Outcome)}
    assert [type(one) for one in refused.values()] == [NotFound, ResourceExhausted]
    assert list(refused) == [1, 5], "what is wrong anyway takes nothing of the budget, and what is known nothing either"
    assert getattr(refused[5], "reason", "") == "PRODUCER_QUOTA"
    assert decision.new_producers == {"a": 2}
    assert Producer("a", bytes([3]) * 16) not in decision.windows
