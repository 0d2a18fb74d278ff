"""The device's threads: normalizations and moments are computed there, never on the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from normcore.errors import NormcoreError
from normserver.errors import ResourceExhausted, from_engine
from normserver.metrics import Metrics
from normserver.process import torch_threads

T = TypeVar("T")


class Compute:
    """A device, and a bounded queue before it."""

    def __init__(self, device: torch.device, metrics: Metrics, *, threads: int, max_queued: int) -> None:
        self.device = device
        self._metrics = metrics
        self._max_queued = max_queued
        self._queued = 0
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="compute", initializer=torch_threads(torch.get_num_threads())
        )

    async def run(self, work: Callable[[], T], *, prefix: str = "", brief: bool = False) -> T:
        """Run `work` on a thread. `prefix` is the request's field that its values came in.

        What is brief is done here and now: on the event loop, of which handing it to a thread and hearing of its end
        would take as much.

        Raises:
            ResourceExhausted: too much is waiting already.
            ServiceError: what the engine found wrong with the values.
        """
        if brief and self.device.type == "cpu":
            try:
                return self._timed(work)
            except NormcoreError as error:
                raise from_engine(error, prefix) from error
        if self._queued >= self._max_queued:
            raise ResourceExhausted(f"{self._queued} normalizations are waiting already; try again later")
        self._queued += 1
        self._metrics.compute_queue.set(self._queued)
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._timed, work)
        # What is on a thread goes on when its caller hangs up, so it is counted until it is done, not until then.
        future.add_done_callback(self._done)
        try:
            return await future
        except NormcoreError as error:
            raise from_engine(error, prefix) from error

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.shutdown(cancel_futures=True)

    def _done(self, _future: asyncio.Future[T]) -> None:
        self._queued -= 1
        self._metrics.compute_queue.set(self._queued)

    def _timed(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self._metrics.compute_seconds.observe(time.perf_counter() - started)


class Kept(threading.local):
    """Memory that each thread keeps for its outputs."""

    # Most outputs are chunks of a megabyte; what is larger than this is not kept.
    LARGEST_BYTES = 1 << 26

    def __init__(self) -> None:
        self._kept = torch.empty(0, dtype=torch.uint8)

    def memory(self, size_bytes: int) -> Tensor:
        """So many bytes, uint8, good until the next call on this thread."""
        if size_bytes > self.LARGEST_BYTES:
            return torch.empty(size_bytes, dtype=torch.uint8)
        if self._kept.shape[0] < size_bytes:
            self._kept = torch.empty(size_bytes, dtype=torch.uint8)
        return self._kept[:size_bytes]


def pick_device(name: str) -> torch.device:
    """The device of a name: auto is CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no CUDA device that torch {torch.__version__} can use")
    return device
