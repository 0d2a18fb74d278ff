"""Tensors on calls that stay open: a message, of one or of several small ones, costs a quarter of what a call costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from normserver import futures, replies
from normserver.errors import Unavailable
from normserver.lifetime import Lifetime
from normserver.metrics import Metrics
from normserver.normalizing import MANY_STREAM, Normalizing
from normserver.stream_memory import Share
from normstats.wire.carried import ManyCarried

# Tensors of one call that were received and are not answered yet; it is not read further meanwhile.
_MOST_TENSORS = 64

Write = Callable[[bytes], Awaitable[None]]


class Sessions:
    """Serves such calls."""

    def __init__(self, normalizing: Normalizing, lifetime: Lifetime, metrics: Metrics) -> None:
        self._normalizing = normalizing
        self._lifetime = lifetime
        self._metrics = metrics

    async def serve(self, messages: AsyncIterator[ManyCarried], caller: str, write: Write, share: Share) -> None:
        """Answer one call's messages, each when it is done.

        Raises:
            InvalidArgument: a message has too many tensors; those before it were answered.
            Unavailable: the server stops; what was received was answered.
        """
        session = _Session(self._normalizing, caller, write, share)
        this = asyncio.current_task()
        assert this is not None, "handlers are tasks"
        try:
            with self._lifetime.tells(this):
                async for message in messages:
                    self._metrics.messages.inc()
                    await session.take(message)
                    del message  # while the next is waited for
        except asyncio.CancelledError:
            if not self._lifetime.stopping:
                session.cancel()
                raise
            await session.finish()
            raise Unavailable("the server is stopping; open another stream", reason="STOPPING") from None
        except BaseException:
            session.cancel()
            raise
        await session.finish()


class _Session:
    """One call."""

    def __init__(self, normalizing: Normalizing, caller: str, write: Write, share: Share) -> None:
        self._normalizing = normalizing
        self._caller = caller
        self._write = write
        self._writing = asyncio.Lock()
        self._share = share
        self._under_way: dict[asyncio.Task[None], int] = {}
        self._answered = asyncio.Event()

    async def take(self, message: ManyCarried) -> None:
        """Answer a message: now if that is brief, else in a task of its own, when there is room."""
        held_bytes = self._share.last_bytes
        answer = self._normalizing.answer_at_once(message, self._caller)
        if answer is not None:
            await self._send(answer, held_bytes)
            return
        while self._under_way and sum(self._under_way.values()) + len(message.items) > _MOST_TENSORS:
            self._answered.clear()
            await self._answered.wait()
        await self._normalizing.room(len(message.items))
        task = asyncio.create_task(self._later(message, held_bytes))
        self._under_way[task] = len(message.items)
        task.add_done_callback(self._done)

    async def finish(self) -> None:
        """Answer all that was taken."""
        await asyncio.gather(*self._under_way)

    def cancel(self) -> None:
        """Nobody waits for answers any more."""
        for task in self._under_way:
            task.cancel()

    async def _later(self, message: ManyCarried, held_bytes: int) -> None:
        outcome = await futures.outcome(self._normalizing.several(message.items, self._caller))
        results = [outcome] * len(message.items) if isinstance(outcome, Exception) else outcome
        await self._send(replies.normalized_many(results, MANY_STREAM, message.number), held_bytes)

    async def _send(self, answer: bytes, held_bytes: int) -> None:
        async with self._writing:
            await self._write(answer)
        self._share.give(held_bytes)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._answered.set()
        if not task.cancelled():
            task.exception()  # seen: the call has ended, or will, as it cannot be written to
