"""How long to wait before the next attempt: doubling, with jitter, so that a fleet does not come back as one."""

from __future__ import annotations

import random

INITIAL_SECONDS = 0.1
MAX_SECONDS = 2.0


class Backoff:
    """The waits of one sequence of attempts."""

    def __init__(self) -> None:
        self._ceiling = INITIAL_SECONDS

    def next_seconds(self) -> float:
        """The next wait: between half the ceiling and the ceiling, which then doubles."""
        wait = random.uniform(self._ceiling / 2, self._ceiling)
        self._ceiling = min(2 * self._ceiling, MAX_SECONDS)
        return wait

    def reset(self) -> None:
        """An attempt succeeded."""
        self._ceiling = INITIAL_SECONDS
