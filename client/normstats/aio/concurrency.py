"""What differs between asyncio and threads, under names that normstats.sync.concurrency has too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import grpc

from normstats import channel
from normstats.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")
R = TypeVar("R")

Condition = asyncio.Condition
Semaphore = asyncio.Semaphore
sleep = asyncio.sleep


def open_channel(target: str, options: Sequence[channel.Option]) -> grpc.aio.Channel:
    """A channel to a target; connects at its first call."""
    return grpc.aio.insecure_channel(target, options=channel.options(options))


async def each(work: Callable[[T], Awaitable[R]], items: Sequence[T], at_once: int) -> list[R]:
    """What work makes of each item, so many at once; the first error ends all."""
    room = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with room:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Gathering(Generic[T, R]):
    """Calls made in one turn of the event loop go together, as those do that one answer woke; one by itself goes alone.

    Nothing waits for a timer or for an answer, so a caller who is by himself loses nothing.
    """

    def __init__(
        self,
        alone: Callable[[T, float | None], Awaitable[R]],
        together: Callable[[Sequence[T], float | None], Awaitable[Sequence[R | Exception]]],
        at_once: int,
    ) -> None:
        self._alone = alone
        self._together = together
        self._at_once = at_once
        self._gathered: list[_Gathered[T, R]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def call(self, item: T, timeout: float | None) -> R:
        """What comes of an item."""
        loop = asyncio.get_running_loop()
        if not self._gathered:
            loop.call_soon(self._go)
        own: _Gathered[T, R] = _Gathered(item, timeout, loop.create_future())
        self._gathered.append(own)
        result = await own.result
        if result is None or isinstance(result, Unavailable):  # by itself, or it may succeed after a while
            return await self._alone(item, timeout)
        if isinstance(result, Exception):
            raise result
        return result

    def _go(self) -> None:
        gathered = [one for one in self._gathered if not one.result.done()]
        self._gathered = []
        while gathered:
            same = [one for one in gathered if one.timeout == gathered[0].timeout][: self._at_once]
            gathered = [one for one in gathered if one not in same]
            if len(same) == 1:
                same[0].result.set_result(None)
                continue
            task = asyncio.create_task(self._send(same))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
            for one in same:
                one.result.add_done_callback(partial(_given_up, same, task))

    async def _send(self, group: Sequence[_Gathered[T, R]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._together([one.item for one in group], group[0].timeout)
        except Exception as error:
            results = [error] * len(group)
        for one, result in zip(group, results, strict=True):
            if not one.result.done():
                one.result.set_result(result)


def _given_up(group: Sequence[_Gathered[Any, Any]], task: asyncio.Task[None], _result: asyncio.Future[Any]) -> None:
    """A message that nobody waits for any more is not waited for either."""
    if all(one.result.cancelled() for one in group):
        task.cancel()


@dataclass(eq=False, slots=True)
class _Gathered(Generic[T, R]):
    """An item, and what comes of it: an error as a value, None if it is to go alone."""

    item: T
    timeout: float | None
    result: asyncio.Future[R | Exception | None]


class Task:
    """Work in the background."""

    def __init__(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        async def run() -> None:
            await work()

        self._task = asyncio.create_task(run(), name=name)

    async def join(self) -> None:
        """Wait until it ends."""
        await asyncio.wait([self._task])


async def wait_until(condition: asyncio.Condition, holds: Callable[[], bool], timeout: float) -> None:
    """Wait, with the condition held, until something holds.

    Raises:
        DeadlineExceeded: it does not within the timeout.
    """
    try:
        async with asyncio.timeout(timeout):
            await condition.wait_for(holds)
    except TimeoutError:
        raise DeadlineExceeded(f"not done within {timeout:g} s; it goes on in the background") from None


class Conversation:
    """A call of streams both ways, a message at a time. Fails at once where nobody listens."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._call = method(wait_for_ready=False)

    async def send(self, message: Any) -> None:
        """Send a message."""
        await self._call.write(message)

    async def receive(self) -> Any:
        """The next message.

        Raises:
            grpc.RpcError: the call has ended.
        """
        return await self._call.read()

    async def end(self) -> None:
        """Hang up."""
        self._call.cancel()
