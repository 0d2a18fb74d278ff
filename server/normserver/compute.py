"""The device's threads: normalizations and moments are computed there, not on the event loop.

A thread that becomes free takes who is next, and with it all that waits and is of its kind. So nothing waits for a
timer, an idle device adds no delay, and a busy one serves in one launch what gathered meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from normcore.errors import NormcoreError
from normserver import calls
from normserver.calls import Call
from normserver.errors import ResourceExhausted, from_engine
from normserver.metrics import Metrics
from normserver.phases import COMPUTE, QUEUE, Phases
from normserver.process import torch_threads
from normserver.turns import Turns

I = TypeVar("I")  # noqa: E741 (what a task is about)
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Task(Generic[I, T]):
    """Work for the device: `work` gets the items of all tasks of one kind that go together, and gives a result of each.

    A result may be an exception: it is raised to the one that it belongs to.
    """

    work: Callable[[Sequence[I]], Sequence[T | Exception]]
    item: I
    caller: str = ""
    kind: Hashable | None = None
    size_bytes: int = 0
    call: Call | None = field(default_factory=calls.current)
    queued_at: float = field(default_factory=time.perf_counter)
    future: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Waiting(NamedTuple):
    """A stream that waits until so many more tasks have room."""

    number: int
    granted: asyncio.Future[None]


class Compute:
    """The threads, and a bounded queue before them."""

    def __init__(self, metrics: Metrics, *, threads: int, max_queued: int) -> None:
        self._metrics = metrics
        self._phases = Phases(metrics)
        metrics.compute_threads.set(threads)
        self._max_queued = max_queued
        self._queued = self._promised = 0
        self._waiting: deque[_Waiting] = deque()
        self._turns: Turns[Task[Any, Any]] = Turns()
        self._changed = threading.Condition()
        self._closed = False
        self._begin = torch_threads(torch.get_num_threads())
        self._threads = [
            threading.Thread(target=self._serve, name=f"compute-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], T], *, prefix: str = "", caller: str = "") -> T:
        """Run `work` on a thread. `prefix` is the request's field that its values came in.

        Raises:
            ResourceExhausted: too much is waiting already.
            ServiceError: what the engine found wrong with the values.
        """
        try:
            return await self.submit(Task(lambda _: (work(),), None, caller))
        except NormcoreError as error:
            raise from_engine(error, prefix) from error

    def why_full(self) -> str:
        """Why `submit` refuses; empty if there is room."""
        if self._queued < self._max_queued:
            return ""
        return f"{self._queued} normalizations are waiting already; try again later"

    async def room(self, number: int = 1) -> None:
        """Wait until so many more tasks of a stream are within half of the queue; the other half is for calls."""
        if not self._waiting and self._has_room(number):
            return
        waiting = _Waiting(number, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif not waiting.granted.cancelled():
                self._promised -= number
                waiting.granted.get_loop().call_soon(self._let_in)  # it may need less, or nothing

    def submit(self, task: Task[Any, T]) -> asyncio.Future[T]:
        """Queue a task. Cancelling its future withdraws it; what is under way goes on, and is counted until its end.

        Raises:
            ResourceExhausted: too much is waiting already.
        """
        if sentence := self.why_full():
            raise ResourceExhausted(sentence)
        self._count(1)
        task.future.add_done_callback(lambda future: self._withdraw(task) if future.cancelled() else None)
        with self._changed:
            self._turns.put(task)
            self._changed.notify()
        return task.future

    def at_once(self, work: Callable[[], T]) -> T:
        """Do it here and now, as far as metrics go on the device, without having waited for it."""
        call, began = calls.current(), time.perf_counter()
        try:
            return work()
        finally:
            ended = time.perf_counter()
            self._metrics.compute_seconds.observe(ended - began)
            self._phases.note(call, QUEUE, began, began)
            self._phases.note(call, COMPUTE, began, ended)

    @property
    def is_alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Wait for what is under way; what was not begun is not."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """A thread's life: take who is next, until closed."""
        self._begin()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._turns)
                if self._closed:
                    return
                tasks = self._turns.take()
            results: Sequence[Any]
            began = time.perf_counter()
            try:
                results = tasks[0].work([task.item for task in tasks])
            except Exception as error:
                results = [error] * len(tasks)
            ended = time.perf_counter()
            tasks[0].future.get_loop().call_soon_threadsafe(self._settle, tasks, results, began, ended)
            del tasks, results

    def _settle(self, tasks: Sequence[Task[Any, Any]], results: Sequence[Any], began: float, ended: float) -> None:
        """Tell who asked."""
        self._metrics.compute_seconds.observe(ended - began)
        self._metrics.launch_size.observe(len(tasks))
        self._count(-len(tasks))
        for task, result in zip(tasks, results, strict=True):
            self._phases.note(task.call, QUEUE, task.queued_at, began)
            self._phases.note(task.call, COMPUTE, began, ended)
            if task.future.cancelled():
                continue
            if isinstance(result, Exception):
                task.future.set_exception(result)
            else:
                task.future.set_result(result)

    def _withdraw(self, task: Task[Any, Any]) -> None:
        with self._changed:
            waited = self._turns.withdraw(task)
        if waited:
            self._count(-1)

    def _count(self, more: int) -> None:
        self._queued += more
        self._metrics.compute_queue.set(self._queued)
        self._let_in()

    def _let_in(self) -> None:
        """Tell streams that have room now."""
        while self._waiting and self._has_room(self._waiting[0].number):
            first = self._waiting.popleft()
            if not first.granted.cancelled():
                self._promised += first.number
                first.granted.set_result(None)

    def _has_room(self, number: int) -> bool:
        taken = self._queued + self._promised
        return not taken or taken + number <= self._max_queued // 2
