"""Who contributes: a random id, drawn once, and sequences that count from 1. A retry repeats both."""

from __future__ import annotations

import itertools
import os
import secrets
from weakref import WeakSet

ID_BYTES = 16


class Producer:
    """One producer. May be shared by threads: a count is drawn in one step.

    A forked process becomes a producer of its own: with its parent's id and sequences, its contributions would be
    taken for retries of its siblings' and be left out.
    """

    def __init__(self, producer_id: bytes | None = None) -> None:
        self._begin(secrets.token_bytes(ID_BYTES) if producer_id is None else producer_id)
        _producers.add(self)

    def _begin(self, producer_id: bytes) -> None:
        self.id = producer_id
        self._sequences = itertools.count(1)

    def next_sequence(self) -> int:
        """The next sequence, never given before."""
        return next(self._sequences)


_producers: WeakSet[Producer] = WeakSet()


def _become_others() -> None:
    for producer in _producers:
        producer._begin(secrets.token_bytes(ID_BYTES))


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_become_others)
