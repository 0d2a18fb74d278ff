"""What a member of a group says and remembers. No I/O."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from normstats import specs
from normstats.errors import InvalidArgument
from normstats.moments import Moments, moments_of
from normstats.producer import ID_BYTES
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import floats

OnMissing = Literal["fail", "proceed"]

DEFAULT_ROUND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What all members of a group say alike; `normalizer` takes in each round, none if empty."""

    group: str
    size: int
    timeout_seconds: float
    on_missing: OnMissing
    quorum: int | None
    normalizer: str

    def __post_init__(self) -> None:
        if self.on_missing not in ("fail", "proceed"):
            raise InvalidArgument(
                f"on_missing is {self.on_missing!r}; expected 'fail' or 'proceed'", field="on_missing"
            )
        if self.size < 1:
            raise InvalidArgument(f"size is {self.size}; expected at least 1", field="size")
        if not self.timeout_seconds > 0:
            raise InvalidArgument(f"timeout is {self.timeout_seconds}; expected above 0 s", field="timeout")
        if self.quorum is not None and (self.on_missing == "fail" or not 1 <= self.quorum <= self.size):
            raise InvalidArgument(
                f"quorum is {self.quorum}; expected 1 to {self.size}, and only with on_missing='proceed'",
                field="quorum",
            )

    def join(self, place: Place) -> pb.SynchronizeStatsRequest.Join:
        """The first frame."""
        request = pb.SynchronizeStatsRequest
        proceeds = self.on_missing == "proceed"
        message = request.Join(
            group=self.group,
            member_id=place.member_id,
            size=self.size,
            on_missing=request.ON_MISSING_PROCEED if proceeds else request.ON_MISSING_FAIL,
            quorum_count=(self.quorum or 1) if proceeds else 0,
            normalizer=self.normalizer,
            group_id=place.group_id,
            next_round=place.next_round if place.group_id else 0,
        )
        message.round_timeout.FromNanoseconds(round(self.timeout_seconds * 1e9))
        return message


class Place:
    """Where a member stands: its id, its group's, and the round that it gives its next part to."""

    def __init__(self) -> None:
        self.member_id = secrets.token_bytes(ID_BYTES)
        self.group_id = b""
        self.next_round = 0

    def take(self, group_id: bytes, number: int, *, given: bool) -> bool:
        """Joined, at this round. A part that was given before stays with its round; False if its group is no more."""
        same = group_id == self.group_id
        if not (same and given):
            self.next_round = max(number, self.next_round) if same else number
        self.group_id = group_id
        return same or not given

    def done(self, number: int) -> None:
        """This round is completed."""
        self.next_round = number + 1

    def heard(self, next_round: str | None) -> None:
        """The server said where the group is."""
        if next_round is not None:
            self.next_round = int(next_round)


def part(
    spec: specs.RunningSpec,
    batch: Any,
    vector: Any = None,
    *,
    weights: Any = None,
    lengths: Any = None,
    mask: Any = None,
) -> pb.SynchronizeStatsRequest.Part:
    """A batch's moments, and numbers to add up; its round is set when it is sent."""
    moments = moments_of(batch, spec, lengths=lengths, mask=mask, weights=weights)
    return pb.SynchronizeStatsRequest.Part(
        moments=moments.to_proto(), vector=b"" if vector is None else floats.to_bytes(specs.float64_array(vector))
    )


def part_of_vector(spec: specs.RunningSpec, vector: Any, terms: Terms) -> pb.SynchronizeStatsRequest.Part:
    """Numbers to add up, and moments of nothing where the group's rounds go into a normalizer."""
    data = floats.to_bytes(np.ravel(np.asarray(vector, np.float64)))
    moments = Moments.empty(spec.num_features).to_proto() if terms.normalizer else None
    return pb.SynchronizeStatsRequest.Part(moments=moments, vector=data)
