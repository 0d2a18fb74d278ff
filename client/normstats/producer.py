"""Who contributes: a random id, drawn once, and sequences that count from 1. A retry repeats both."""

from __future__ import annotations

import itertools
import secrets

ID_BYTES = 16


class Producer:
    """One producer. May be shared by threads: a count is drawn in one step."""

    def __init__(self, producer_id: bytes | None = None) -> None:
        self.id = secrets.token_bytes(ID_BYTES) if producer_id is None else producer_id
        self._sequences = itertools.count(1)

    def next_sequence(self) -> int:
        """The next sequence, never given before."""
        return next(self._sequences)
