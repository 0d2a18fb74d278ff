"""One team of threads for all kernels of a process, as large as torch's, whoever calls.

A call takes what help is free, which is none where as many calls run as there are threads; so requests side by side do
not crowd the cores. What is shared out is cut by the shape alone, so results do not depend on who helped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import torch

# Parts that are enough for threads to end at about the same time; between parts they wait for the GIL.
PARTS = 64


class Team:
    """Threads that help one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernels")
        self._busy = 0

    def share(self, total: int, grain: int, run: Callable[[int, int], None]) -> None:
        """Call run(first, last) on parts of range(total), `grain` long or longer, here and on threads that are free."""
        if total <= grain:
            run(0, total)
            return
        grain = max(grain, total // PARTS)
        parts = -(-total // grain)
        with self._lock:
            helpers = max(0, min(parts, torch.get_num_threads() - self._busy) - 1)
            self._busy += 1 + helpers
        numbers = count()

        def work() -> None:
            while (part := next(numbers)) < parts:
                run(part * grain, min(total, (part + 1) * grain))

        helping = [self._pool.submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            for one in helping:
                if not one.cancel():
                    one.result()
            with self._lock:
                self._busy -= 1 + helpers


_team = Team()


def share(total: int, grain: int, run: Callable[[int, int], None]) -> None:
    """Team.share of this process's team."""
    _team.share(total, grain, run)


def _begin_anew() -> None:
    """A forked process has none of its parent's threads."""
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
