"""Whether the server is stopping, and the tasks that have to hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Lifetime:
    """From the start to the moment when the server begins to stop."""

    def __init__(self) -> None:
        self.stopping = False
        self._told: set[asyncio.Task[Any]] = set()

    @contextmanager
    def tells(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Within this block, `stop` cancels the task."""
        self._told.add(task)
        if self.stopping:
            task.cancel()
        try:
            yield
        finally:
            self._told.discard(task)

    def stop(self) -> None:
        """Begin to stop."""
        self.stopping = True
        for task in self._told:
            task.cancel()
