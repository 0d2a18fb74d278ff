"""One team of threads for all kernels of a process, as large as torch's, whoever calls.

A call takes what help is free, which is none where as many calls run as there are threads; so requests side by side do
not crowd the cores. What is shared out is cut by the shape alone, so results do not depend on who helped.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

try:
    _processor: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
except (AttributeError, OSError, TypeError):  # pragma: no cover - not on Linux

    def _processor() -> int:
        return -1


def _keep_off(processor: int) -> None:
    """Move this thread from a processor, where another has begun: a thread that is woken is often put beside its waker.

    The scheduler parts them after milliseconds, in which a kernel is done.
    """
    if _processor() != processor or processor < 0:
        return
    allowed = os.sched_getaffinity(0)
    if others := allowed - {processor}:
        os.sched_setaffinity(0, others)
        os.sched_setaffinity(0, allowed)


class Team:
    """Threads that help one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernels")
        self._busy = 0

    def share(self, total: int, grain: int, run: Callable[[int], None]) -> None:
        """Call run(turns) here and on threads that are free, for kernels that take turns at range(total).

        turns is the address of what `compiled.language.follow` reads: parts are `grain` long; 0 for one thread alone.
        """
        if total <= grain:
            run(0)
            return
        with self._lock:
            helpers = max(0, min(-(-total // grain), torch.get_num_threads() - self._busy) - 1)
            self._busy += 1 + helpers
        turns = (ctypes.c_int64 * 2)(0, grain)
        address, here = ctypes.addressof(turns), _processor()

        def help_out() -> None:
            _keep_off(here)
            run(address)

        helping = [self._pool.submit(help_out) for _ in range(helpers)]
        try:
            run(address)
        finally:
            for one in helping:
                if not one.cancel():
                    one.result()
            with self._lock:
                self._busy -= 1 + helpers


_team = Team()


def share(total: int, grain: int, run: Callable[[int], None]) -> None:
    """Team.share of this process's team."""
    _team.share(total, grain, run)


def _begin_anew() -> None:
    """A forked process has none of its parent's threads."""
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
