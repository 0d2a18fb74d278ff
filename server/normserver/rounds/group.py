"""A group's rounds, decided without any I/O: parts and the time go in; what is complete, and who is late, comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from normcore.stack import MomentsStack
from normserver.errors import FailedPrecondition, InvalidArgument


@dataclass(frozen=True, slots=True)
class Terms:
    """What all members of a group say alike.

    A round is complete when `size` members gave their parts. `timeout_seconds` after its first part it goes on with
    those present if `proceed` and they are at least `quorum`; it fails otherwise. `normalizer` takes each round in;
    none if empty.
    """

    size: int
    timeout_seconds: float
    proceed: bool
    quorum: int
    normalizer: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one member gives to one round: the moments of a batch, numbers to add up (float64 bytes), or both."""

    moments: MomentsStack | None
    vector: bytes


class Member(NamedTuple):
    """A member's place: an id within the identity that joined with it, so that no other identity can take it."""

    identity: str
    id: bytes


class Closed(NamedTuple):
    """A round that waits no longer, and the parts that were given; they are merged if `complete`."""

    round: int
    parts: Mapping[Member, Part]
    complete: bool


@dataclass(slots=True)
class Group:
    """The rounds of one group, one open at a time, counted from 1. `id` tells it from others of its name.

    What `first` and the rounds since came to is known here; of those before, only that they are over. `taken_over` says
    that another server may have run rounds of it before; then members know more than this one.
    """

    id: bytes
    terms: Terms
    round: int = 1
    taken_over: bool = False
    parts: dict[Member, Part] = field(default_factory=dict)
    deadline: float | None = None
    first: int = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.round

    def agree(self, terms: Terms, *, alone: bool) -> None:
        """Check a member's terms; whoever is alone, between rounds, may set new ones.

        Raises:
            FailedPrecondition: they are not those of the group.
        """
        if terms == self.terms:
            return
        if not alone or self.parts:
            raise FailedPrecondition(
                f"the group's terms are {_said(self.terms)}; yours are {_said(terms)}", reason="OTHER_TERMS"
            )
        self.terms = terms

    def catch_up(self, next_round: int) -> Closed | None:
        """A member knows that all before this round are over: one that is still open here can never be completed.

        Raises:
            InvalidArgument: it cannot know that, since all rounds of this group were run here.
        """
        if next_round <= self.round:
            return None
        if not self.taken_over:
            raise InvalidArgument("join.next_round", f"is {next_round}; the group is at round {self.round}")
        closed = self._close(complete=False)
        self.round = self.first = next_round
        return closed

    def give(self, member: Member, number: int, part: Part, now: float) -> Closed | None:
        """Take a member's part in; returns the round if that completes it. A part given twice is taken once.

        Raises:
            FailedPrecondition: the round is over.
            InvalidArgument: the round is not open yet, or the part is not like the others'.
        """
        if number < self.round:
            raise self.over(number)
        if number > self.round:
            raise InvalidArgument("part.round", f"is {number}; the group is at round {self.round}")
        if self.parts:
            _check_alike(next(iter(self.parts.values())), part)
        else:
            self.deadline = now + self.terms.timeout_seconds
        self.parts.setdefault(member, part)
        return self._close(complete=True) if len(self.parts) == self.terms.size else None

    def over(self, number: int) -> FailedPrecondition:
        """What a member is told that gives a part to a round that is over."""
        if number < self.first:
            return FailedPrecondition(
                f"round {number} was over when this server took the group, and its result went with the server that "
                f"had it before; do not give the part again, it may be in it; the group is at round {self.round}",
                field="part.round",
                reason="RESULT_LOST",
                metadata={"next_round": str(self.round)},
            )
        return FailedPrecondition(
            f"round {number} is over, and your part is not in it; the group is at round {self.round}",
            field="part.round",
            reason="ROUND_CLOSED",
            metadata={"next_round": str(self.round)},
        )

    def expire(self, now: float) -> Closed | None:
        """The open round, if its time is over; complete if it may go on with those present."""
        if self.deadline is None or now < self.deadline:
            return None
        return self._close(complete=self.terms.proceed and len(self.parts) >= self.terms.quorum)

    def _close(self, *, complete: bool) -> Closed:
        closed = Closed(self.round, self.parts, complete)
        self.round, self.parts, self.deadline = self.round + 1, {}, None
        return closed


def _check_alike(first: Part, part: Part) -> None:
    if len(part.vector) != len(first.vector):
        raise InvalidArgument(
            "part.vector", f"has {len(part.vector) // 8} numbers; the other members gave {len(first.vector) // 8}"
        )
    width, expected = (None if one.moments is None else one.moments.num_features for one in (part, first))
    if width != expected:
        said, others = ("no moments" if one is None else f"{one} features" for one in (width, expected))
        raise InvalidArgument("part.moments", f"has {said}; the other members gave {others}")


def _said(terms: Terms) -> str:
    missing = f"proceed with {terms.quorum}" if terms.proceed else "fail"
    normalizer = f", into {terms.normalizer!r}" if terms.normalizer else ""
    return f"size {terms.size}, {terms.timeout_seconds:g} s, then {missing}{normalizer}"
