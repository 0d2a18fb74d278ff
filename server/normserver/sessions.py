"""Small tensors on calls that stay open: a message of them costs a quarter of what a call costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from normserver import futures, replies
from normserver.errors import Unavailable
from normserver.lifetime import Lifetime
from normserver.metrics import Metrics
from normserver.normalizing import Normalizing
from normstats.wire.carried import ManyCarried

# Tensors and bytes of one call that were received and are not answered yet; it is not read further meanwhile.
_MOST_TENSORS, _MOST_BYTES = 64, 64 << 20

Write = Callable[[bytes], Awaitable[None]]


class Sessions:
    """Serves such calls."""

    def __init__(self, normalizing: Normalizing, lifetime: Lifetime, metrics: Metrics) -> None:
        self._normalizing = normalizing
        self._lifetime = lifetime
        self._metrics = metrics

    async def serve(self, messages: AsyncIterator[ManyCarried], caller: str, write: Write) -> None:
        """Answer one call's messages, each when it is done.

        Raises:
            InvalidArgument: a message has too many tensors; those before it were answered.
            Unavailable: the server stops; what was received was answered.
        """
        session = _Session(self._normalizing, caller, write)
        this = asyncio.current_task()
        assert this is not None, "handlers are tasks"
        try:
            with self._lifetime.tells(this):
                async for message in messages:
                    self._metrics.messages.inc()
                    await session.take(message)
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

    def __init__(self, normalizing: Normalizing, caller: str, write: Write) -> None:
        self._normalizing = normalizing
        self._caller = caller
        self._write = write
        self._writing = asyncio.Lock()
        self._under_way: dict[asyncio.Task[None], tuple[int, int]] = {}
        self._answered = asyncio.Event()

    async def take(self, message: ManyCarried) -> None:
        """Answer a message: now if that is brief, else in a task of its own, when there is room."""
        results = self._normalizing.at_once(message.requests, self._caller)
        if results is not None:
            await self._send(message, results)
            return
        size = len(message.requests), sum(len(request.data) for request in message.requests)
        while not self._has_room(*size):
            self._answered.clear()
            await self._answered.wait()
        task = asyncio.create_task(self._later(message))
        self._under_way[task] = size
        task.add_done_callback(self._done)

    def _has_room(self, tensors: int, size_bytes: int) -> bool:
        """Whether so much can be under way beside what is; alone anything can."""
        taken = self._under_way.values()
        return not taken or (
            sum(one for one, _ in taken) + tensors <= _MOST_TENSORS
            and sum(one for _, one in taken) + size_bytes <= _MOST_BYTES
        )

    async def finish(self) -> None:
        """Answer all that was taken."""
        await asyncio.gather(*self._under_way)

    def cancel(self) -> None:
        """Nobody waits for answers any more."""
        for task in self._under_way:
            task.cancel()

    async def _later(self, message: ManyCarried) -> None:
        outcome = await futures.outcome(self._normalizing.several(message.requests, self._caller))
        await self._send(message, [outcome] * len(message.requests) if isinstance(outcome, Exception) else outcome)

    async def _send(self, message: ManyCarried, results: Sequence[bytes | Exception]) -> None:
        answer = replies.normalized_many(results, "NormalizeManyStream", message.number)
        async with self._writing:
            await self._write(answer)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._answered.set()
        if not task.cancelled():
            task.exception()  # seen: the call has ended, or will, as it cannot be written to
