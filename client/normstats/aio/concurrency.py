"""What differs between asyncio and threads, under names that normstats.sync.concurrency has too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from normstats import channel
from normstats.bringing import Bringing
from normstats.errors import DeadlineExceeded
from normstats.security import Security

T = TypeVar("T")
R = TypeVar("R")

Condition = asyncio.Condition
Semaphore = asyncio.Semaphore
sleep = asyncio.sleep


def open_channel(target: str, options: Sequence[channel.Option], security: Security) -> Any:
    """A channel to a target; connects at its first call."""
    chosen = channel.options([*security.options(), *options])
    if security.tls is None:
        return Bringing(grpc.aio.insecure_channel(target, options=chosen), security)
    return Bringing(grpc.aio.secure_channel(target, security.tls.credentials(), options=chosen), security)


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


async def apart(work: Callable[[], T]) -> T:
    """What work returns that waits for a disk; the event loop goes on."""
    return await asyncio.to_thread(work)


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
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError:
            await self._call.read()  # the call has ended: this says why

    async def receive(self, timeout: float | None = None) -> Any:
        """The next message.

        Raises:
            grpc.RpcError: the call has ended.
            DeadlineExceeded: it does not come within the timeout.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._call.read()
        except TimeoutError:
            raise DeadlineExceeded("not answered in time") from None

    async def end(self) -> None:
        """Hang up."""
        self._call.cancel()
