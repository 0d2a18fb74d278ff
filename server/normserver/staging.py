"""Tensors on their way to a GPU and back: through pinned memory that each thread keeps, on a stream of its own.

So the copies of one thread go on beside the arithmetic of another.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from normserver import engine
from normserver.engine import Batch, Normalized, Plan
from normserver.kept import Kept


class Staging:
    """The way of each thread."""

    def __init__(self) -> None:
        self._there = Kept(pinned=True)
        self._back = Kept(pinned=True)
        self._streams = threading.local()

    def normalize(self, plan: Plan, batch: Batch, device: torch.device) -> Normalized:
        """Normalize a batch of host memory on a GPU; the output is good until the next call on this thread.

        Raises:
            NormcoreError: shape, padding or values do not fit the spec.
        """
        stream = self._stream(device)
        with torch.cuda.stream(stream):
            pinned = engine.tensor_in(self._there.memory(batch.x.nbytes), batch.x.dtype, tuple(batch.x.shape))
            x = pinned.copy_(batch.x).to(device, non_blocking=True)
            found = engine.normalize(plan, replace(batch, x=x), device)
            y = engine.tensor_in(self._back.memory(found.y.nbytes), found.y.dtype, tuple(found.y.shape))
            y.copy_(found.y, non_blocking=True)
        stream.synchronize()
        return replace(found, y=y)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        own: torch.cuda.Stream = self._streams.own
        return own
