"""What a stream has taken in and the server has not acknowledged yet: pure, no I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from normstats.v1 import normalization_service_pb2 as pb


class Update(NamedTuple):
    """One contribution under its sequence."""

    sequence: int
    contributions: Sequence[pb.Contribution]


class Unacknowledged:
    """Updates in the order of their sequences: those sent first, then those still to be sent."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1")
        self._window = window
        self._updates: deque[Update] = deque()
        self._sent = 0
        self._last = 0
        self.acknowledged = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may be taken in."""
        return len(self._updates) >= self._window

    @property
    def is_empty(self) -> bool:
        """Whether all that was taken in is acknowledged."""
        return not self._updates

    def take_in(self, contributions: Sequence[pb.Contribution]) -> None:
        """Add an update under the next sequence."""
        self._last += 1
        self._updates.append(Update(self._last, contributions))

    def next_to_send(self) -> Update | None:
        """The next that was not sent on this connection; None if there is none."""
        if self._sent >= len(self._updates):
            return None
        self._sent += 1
        return self._updates[self._sent - 1]

    def acknowledge(self, sequence: int) -> None:
        """Everything up to this sequence is durable."""
        while self._updates and self._updates[0].sequence <= sequence:
            self._updates.popleft()
            self._sent = max(0, self._sent - 1)
        self.acknowledged = max(self.acknowledged, sequence)

    def reconnect(self) -> None:
        """A new connection: all that is not acknowledged is to be sent again."""
        self._sent = 0
