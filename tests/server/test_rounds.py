"""A group's rounds as a pure machine: its whole state after every event."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from normcore import MomentsStack, moments_of
from normserver.errors import FailedPrecondition, InvalidArgument
from normserver.rounds.group import Closed, Group, Member, Part, Terms

A, B, C = (Member("anyone", id_ * 16) for id_ in (b"a", b"b", b"c"))
TWO = Terms(size=2, timeout_seconds=10.0, proceed=False, quorum=2, normalizer="")
LAX = replace(TWO, size=3, proceed=True, quorum=2)


def part(value: float = 0.0, *, features: int = 1, vector: bytes = b"") -> Part:
    moments = moments_of(torch.full((1, features), value, dtype=torch.float64), 1)
    return Part(MomentsStack.of((moments,)), vector)


def group(terms: Terms = TWO) -> Group:
    return Group(b"g" * 16, terms)


def test_a_round_is_complete_when_all_gave_their_parts() -> None:
    one, a, b = group(), part(1.0), part(2.0)
    assert one.give(A, 1, a, now=5.0) is None
    assert (one.round, one.parts, one.deadline) == (1, {A: a}, 15.0)
    assert one.give(B, 1, b, now=7.0) == Closed(1, {A: a, B: b}, complete=True)
    assert (one.round, one.parts, one.deadline) == (2, {}, None)


def test_a_part_given_again_is_taken_once() -> None:
    one, first = group(), part(1.0)
    one.give(A, 1, first, now=0.0)
    assert one.give(A, 1, part(9.0), now=8.0) is None
    assert (one.parts, one.deadline) == ({A: first}, 10.0)


def test_a_late_part_is_told_where_the_group_is() -> None:
    one = group()
    one.give(A, 1, part(), now=0.0)
    one.give(B, 1, part(), now=0.0)
    with pytest.raises(FailedPrecondition, match="round 1 is over, and your part is not in it") as caught:
        one.give(C, 1, part(), now=0.0)
    assert (caught.value.reason, caught.value.metadata) == ("ROUND_CLOSED", {"next_round": "2"})
    assert (one.round, one.parts) == (2, {})


def test_a_part_ahead_of_the_group_is_refused() -> None:
    one = group()
    with pytest.raises(InvalidArgument, match=r"part\.round is 2; the group is at round 1"):
        one.give(A, 2, part(), now=0.0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (part(features=2), "has 2 features; the other members gave 1 features"),
        (Part(None, b""), "has no moments; the other members gave 1 features"),
        (part(vector=bytes(16)), "has 2 numbers; the other members gave 0"),
    ],
)
def test_a_part_unlike_the_others_is_refused_alone(wrong: Part, sentence: str) -> None:
    one, first = group(), part()
    one.give(A, 1, first, now=0.0)
    with pytest.raises(InvalidArgument, match=sentence):
        one.give(B, 1, wrong, now=0.0)
    assert one.parts == {A: first}


def test_a_round_that_misses_members_fails_at_its_deadline_and_the_next_begins() -> None:
    one, a = group(), part()
    assert one.expire(1e9) is None, "no round waits before its first part"
    one.give(A, 1, a, now=0.0)
    assert one.expire(9.9) is None
    assert one.expire(10.0) == Closed(1, {A: a}, complete=False)
    assert (one.round, one.parts, one.deadline) == (2, {}, None)


def test_a_round_that_may_proceed_needs_its_quorum() -> None:
    one, a, b = group(LAX), part(), part()
    one.give(A, 1, a, now=0.0)
    assert one.expire(10.0) == Closed(1, {A: a}, complete=False)
    one.give(A, 2, a, now=20.0)
    one.give(B, 2, b, now=21.0)
    assert one.expire(30.0) == Closed(2, {A: a, B: b}, complete=True)


def test_members_agree_on_terms() -> None:
    one = group()
    one.agree(TWO, alone=False)
    with pytest.raises(FailedPrecondition, match="the group's terms are size 2, 10 s, then fail; yours are size 3"):
        one.agree(LAX, alone=False)
    one.give(A, 1, part(), now=0.0)
    with pytest.raises(FailedPrecondition):
        one.agree(LAX, alone=True)
    one.expire(10.0)
    one.agree(LAX, alone=True)
    assert one.terms == LAX


def test_a_member_that_knows_of_later_rounds_closes_the_one_that_cannot_be_completed() -> None:
    one, a = Group(b"g" * 16, TWO, taken_over=True), part()
    assert one.catch_up(1) is None
    one.give(A, 1, a, now=0.0)
    assert one.catch_up(7) == Closed(1, {A: a}, complete=False)
    assert (one.round, one.parts) == (7, {})
    with pytest.raises(FailedPrecondition, match="do not give the part again") as caught:
        one.give(A, 6, a, now=0.0)
    assert (caught.value.reason, caught.value.metadata) == ("RESULT_LOST", {"next_round": "7"})


def test_nobody_knows_of_later_rounds_where_all_were_run_here() -> None:
    one = group()
    one.give(A, 1, part(), now=0.0)
    with pytest.raises(InvalidArgument, match="next_round is 2; the group is at round 1"):
        one.catch_up(2)
    assert one.round == 1
