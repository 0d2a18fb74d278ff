"""What a stream has taken in and the server has not acknowledged yet: pure, no I/O, no clock.

What waits while others are on their way goes as one contribution of several batches, in order: one message and one
sequence instead of many. No policy can tell the difference, as each batch stays its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2

# While so many are on their way, what comes gathers. Two keep the server busy while an acknowledgement travels.
IN_FLIGHT = 2
MAX_BATCHES = 256
MAX_BYTES = 2**20


class Update(NamedTuple):
    """One contribution under its sequence; it holds `taken` of those that were taken in."""

    sequence: int
    contribution: pb.Contribution
    taken: int


class Unacknowledged:
    """Updates in the order of their sequences, and after them what has no sequence yet."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1")
        self._window = window
        self._updates: deque[Update] = deque()
        self._waiting: deque[pb.Contribution] = deque()
        self._sent = 0  # of the updates, those sent on this connection
        self._last = 0
        self._taken = 0
        self.acknowledged = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may be taken in."""
        return self._taken >= self._window

    @property
    def is_empty(self) -> bool:
        """Whether all that was taken in is acknowledged."""
        return self._taken == 0

    def take_in(self, contribution: pb.Contribution) -> None:
        """Add a contribution."""
        self._waiting.append(contribution)
        self._taken += 1

    def next_to_send(self) -> Update | None:
        """The next that was not sent on this connection; None while there is none, or enough are on their way."""
        if self._sent == len(self._updates):
            if not self._waiting or len(self._updates) >= IN_FLIGHT:
                return None
            self._updates.append(self._gathered())
        self._sent += 1
        return self._updates[self._sent - 1]

    def acknowledge(self, sequence: int) -> None:
        """Everything up to this sequence is durable."""
        while self._updates and self._updates[0].sequence <= sequence:
            done = self._updates.popleft()
            self._sent = max(0, self._sent - 1)
            self._taken -= done.taken
            self.acknowledged += done.taken

    def reconnect(self) -> None:
        """A new connection: all that is not acknowledged is to be sent again, each under its sequence."""
        self._sent = 0

    def _gathered(self) -> Update:
        """As many as go together, from those that wait."""
        self._last += 1
        first = self._waiting.popleft()
        batches = list(first.moments.batches)
        more = list(self._that_go_with(first, batches))
        if not more:
            return Update(self._last, first, 1)
        together = pb.Contribution(normalizer=first.normalizer, observe_time=_time(first))
        together.moments.batches.extend(batches)
        return Update(self._last, together, 1 + len(more))

    def _that_go_with(self, first: pb.Contribution, batches: list[resources_pb2.Moments]) -> Iterator[pb.Contribution]:
        """Take those that follow, and put their batches beside the first one's, while there is room."""
        size = first.ByteSize()
        while self._waiting and len(batches) < MAX_BATCHES:
            following = self._waiting[0]
            size += following.ByteSize()
            if size > MAX_BYTES or (following.normalizer, _time(following)) != (first.normalizer, _time(first)):
                return
            batches.extend(following.moments.batches)
            yield self._waiting.popleft()


def _time(contribution: pb.Contribution) -> Timestamp | None:
    return contribution.observe_time if contribution.HasField("observe_time") else None
