"""The clock by which replay windows age: the seconds during which any server ran on the store.

A wall clock may step by years, and a window that is forgotten too early lets a retry count twice. So windows age by
the monotonic clocks of the servers. Each server keeps the newest reading in the store, where the maximum of all
readings wins; a server that starts, or that shares the store with an older one, catches up with it. Time during which
no server runs does not count, so windows may be kept longer, never shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# How often a reading is exchanged with the store: a server is at most so far behind the others.
EXCHANGE_SECONDS = 60.0


class RetentionClock:
    """Seconds that servers have run on this store; never goes back."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = -monotonic()

    def now(self) -> float:
        """The present reading. Any thread may ask."""
        return self._monotonic() + self._offset

    def catch_up(self, reading: float) -> None:
        """Continue from a reading, unless this clock is ahead of it."""
        self._offset = max(self._offset, reading - self._monotonic())
