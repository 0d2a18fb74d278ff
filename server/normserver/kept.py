"""Memory that each thread keeps, as new pages cost more than arithmetic."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# Most of it is chunks of a megabyte; what is larger than this is not kept.
_LARGEST_BYTES = 1 << 26


class Kept(threading.local):
    """One piece of it; `pinned` is what a GPU copies from and to while the processor goes on."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._kept = torch.empty(0, dtype=torch.uint8)

    def memory(self, size_bytes: int) -> Tensor:
        """So many bytes, uint8, good until the next call on this thread."""
        if size_bytes > _LARGEST_BYTES:
            return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        if self._kept.shape[0] < size_bytes:
            self._kept = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        return self._kept[:size_bytes]
