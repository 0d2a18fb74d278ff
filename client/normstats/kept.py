"""Memory of large results, used again for the next once nobody looks at it any more: new pages cost more than copying
into ones that are there.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.uint8]

# Smaller ones glibc keeps; see normstats.memory.
LEAST_BYTES = 1 << 20
# How much is kept that nobody uses, and for how long.
MOST_BYTES, SECONDS = 256 << 20, 60.0


@dataclass(frozen=True, eq=False, slots=True)
class _Free:
    block: Block
    since: float


class Kept:
    """Blocks of memory. One comes back when the last array and view of it is gone, in whatever thread that is."""

    def __init__(self, most_bytes: int = MOST_BYTES, seconds: float = SECONDS) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._free: deque[_Free] = deque()  # the oldest first
        self._looks = False

    @property
    def kept_bytes(self) -> int:
        """How much is kept that nobody uses."""
        return sum(free.block.nbytes for free in list(self._free))

    def array(self, size_bytes: int) -> Block:
        """An array of bytes, not cleared."""
        if size_bytes < LEAST_BYTES:
            return np.empty(size_bytes, np.uint8)
        block = self._taken(size_bytes)
        if block is None:
            block = np.empty(size_bytes, np.uint8)
        # All arrays that are made of the result hold this, whose end is told: they may outlive the result itself.
        lent = (ctypes.c_uint8 * size_bytes).from_address(block.__array_interface__["data"][0])
        weakref.finalize(lent, self._back, block).atexit = False
        return np.frombuffer(memoryview(lent), np.uint8)

    def forget(self) -> None:
        """Keep nothing."""
        self._free.clear()
        self._looks = False

    def _taken(self, size_bytes: int) -> Block | None:
        """One of exactly that size: the same is asked for again and again."""
        for free in reversed(list(self._free)):
            if free.block.nbytes == size_bytes:
                try:
                    self._free.remove(free)
                except ValueError:  # another thread was faster
                    continue
                return free.block
        return None

    def _back(self, block: Block) -> None:
        if block.nbytes > self._most_bytes:
            return
        self._free.append(_Free(block, monotonic()))
        while self.kept_bytes > self._most_bytes:
            self._drop_oldest()
        if not self._looks:
            self._looks = True
            self._look_later()

    def _look_later(self) -> None:
        timer = threading.Timer(self._seconds, self._look)
        timer.daemon = True
        timer.name = "normstats-kept"
        timer.start()

    def _look(self) -> None:
        """Give back what has not been used."""
        while self._free and self._free[0].since <= monotonic() - self._seconds:
            self._drop_oldest()
        if self._free:
            self._look_later()
        else:
            self._looks = False

    def _drop_oldest(self) -> None:
        with suppress(IndexError):  # another thread was faster
            self._free.popleft()


RESULTS = Kept()
"""What this process's results lie in."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RESULTS.forget)
