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
from math import inf
from time import monotonic, sleep

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
        self._lent: set[int] = set()
        self._looks = False

    @property
    def kept_bytes(self) -> int:
        """How much is kept that nobody uses."""
        return sum(free.block.nbytes for free in list(self._free))

    def array(self, size_bytes: int) -> Block:
        """An array of bytes, not cleared."""
        if size_bytes < LEAST_BYTES or size_bytes > self._most_bytes:
            return np.empty(size_bytes, np.uint8)
        block = self._taken(size_bytes)
        if block is None:
            block = np.empty(size_bytes, np.uint8)
        # All arrays that are made of the result hold this, whose end is told: they may outlive the result itself.
        lent = (ctypes.c_uint8 * size_bytes).from_address(block.__array_interface__["data"][0])
        self._lent.add(id(block))
        weakref.finalize(lent, self._back, block).atexit = False
        self._begin_to_look()
        return np.frombuffer(memoryview(lent), np.uint8)

    def forget(self) -> None:
        """Keep nothing; nobody looks, as in a forked process."""
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
        """Take a block back. This may interrupt anything, in any thread: it waits for nothing."""
        self._free.append(_Free(block, monotonic()))
        self._lent.discard(id(block))
        while self.kept_bytes > self._most_bytes:
            self._drop_oldest(inf)

    def _begin_to_look(self) -> None:
        if not self._looks:
            self._looks = True
            try:
                threading.Thread(target=self._look, name="normstats-kept", daemon=True).start()
            except RuntimeError:  # there can be no more threads: the next result tries again
                self._looks = False

    def _look(self) -> None:
        """Give back what has not been used for so long, until there is nothing that is or may be kept."""
        while self._free or self._lent or self._end():
            sleep(self._seconds / 4)
            while self._drop_oldest(monotonic() - self._seconds):
                pass

    def _end(self) -> bool:
        """Look no more; whether something came at that very moment, and nobody else looks after it."""
        self._looks = False
        if not (self._free or self._lent) or self._looks:
            return False
        self._looks = True
        return True

    def _drop_oldest(self, before: float) -> bool:
        """Give the oldest back, if it is kept since before then."""
        with suppress(IndexError):  # another thread was faster
            if self._free[0].since <= before:
                self._free.popleft()
                return True
        return False


RESULTS = Kept()
"""What this process's results lie in."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RESULTS.forget)
