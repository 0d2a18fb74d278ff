"""Normalizations on a stream that stays open; small ones of one turn of the event loop share a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc

from normstats import chunking, sessions
from normstats.errors import DeadlineExceeded, NormstatsError, Unavailable
from normstats.sessions import Message, Reply, Request

# Streams of requests that share no message.
_MOST_LARGE = 4


@dataclass(eq=False, slots=True)
class _Asked:
    """A request, and what comes of it; None: it must be asked again, by a call of its own."""

    request: Request
    answer: asyncio.Future[Reply | NormstatsError | None]

    def expire(self) -> None:
        """Its time is over."""
        self.answered(DeadlineExceeded("not answered in time"))

    def answered(self, answer: Reply | NormstatsError | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class AsyncSession:
    """A connection's streams, and others when they have served their time.

    Nothing waits for a timer, or for another's answer: who is by himself loses nothing. Whatever ends a stream, what it
    left unanswered goes by a call of its own, which is repeated until its timeout.
    """

    def __init__(self, method: Callable[[], Any], alone: Callable[[Request, float], Awaitable[Reply]]) -> None:
        """`method` gives the stub's NormalizeManyStream; `alone` calls Normalize within so many seconds."""
        self._alone = alone
        self._used = False
        # Small requests do not stand in line behind large ones.
        self._small, self._large = _Talks(method, 1), _Talks(method, _MOST_LARGE)

    async def call(self, request: Request, timeout: float) -> Reply:
        """Normalize a tensor.

        Raises:
            NormstatsError: it failed.
        """
        if not self._used:  # one call alone is no use for a stream
            self._used = True
            return await self._alone(request, timeout)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        asked = _Asked(request, loop.create_future())
        timer = loop.call_at(deadline, asked.expire)
        talks = self._small if chunking.goes_with_others(request) else self._large
        talks.least_busy().ask(asked)
        try:
            answer = await asked.answer
        finally:
            timer.cancel()
        if answer is None or isinstance(answer, Unavailable):
            return await self._alone(request, deadline - loop.time())
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """End the streams."""
        await self._small.close()
        await self._large.close()


class _Talks:
    """Some streams."""

    def __init__(self, method: Callable[[], Any], most: int) -> None:
        self._method = method
        self._most = most
        self._open: list[_Talk] = []

    def least_busy(self) -> _Talk:
        """One of them, or another where all are busy and there may be more: it may lead to another server."""
        for talk in [talk for talk in self._open if talk.over]:
            talk.retire()
            self._open.remove(talk)
        least = min(self._open, key=lambda talk: talk.busy, default=None)
        if least is None or (least.busy and len(self._open) < self._most):
            least = _Talk(self._method()(wait_for_ready=False))
            self._open.append(least)
        return least

    async def close(self) -> None:
        """End them."""
        while self._open:
            await self._open.pop().close()


class _Talk:
    """One stream: a task writes what was asked, another reads what is answered."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ends = monotonic() + sessions.LIFE_SECONDS
        self._asked: list[_Asked] = []
        self._wake = asyncio.Event()
        self._under_way: dict[int, list[_Asked]] = {}
        self._number = 0
        self._retired = self._broken = False
        self._writer = asyncio.create_task(self._write(), name="normalize-writer")
        self._reader = asyncio.create_task(self._read(), name="normalize-reader")

    @property
    def over(self) -> bool:
        """Whether another is to be opened."""
        return self._broken or monotonic() > self._ends

    @property
    def busy(self) -> int:
        """How much was asked and is not answered."""
        return len(self._asked) + len(self._under_way)

    def ask(self, asked: _Asked) -> None:
        """Send it, together with what else is asked in this turn of the loop."""
        self._asked.append(asked)
        self._wake.set()

    def retire(self) -> None:
        """Nothing more will be asked."""
        self._retired = True
        self._wake.set()

    async def close(self) -> None:
        """End it now."""
        self._call.cancel()
        for task in (self._writer, self._reader):
            task.cancel()
        await asyncio.wait([self._writer, self._reader])

    async def _write(self) -> None:
        try:
            while not self._broken:
                await self._wake.wait()
                self._wake.clear()
                while self._asked:
                    group = list(sessions.first_message(self._asked))
                    self._asked = self._asked[len(group) :]
                    group = [one for one in group if not one.answer.done()]
                    if not group:
                        continue
                    self._number += 1
                    self._under_way[self._number] = group
                    await self._call.write(Message([one.request for one in group], self._number))
                if self._retired:
                    await self._call.done_writing()
                    return
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the reader is told why
        finally:
            if self._broken or not self._retired:
                self._break()

    async def _read(self) -> None:
        try:
            while (reply := await self._call.read()) is not grpc.aio.EOF:
                for one, answer in zip(self._under_way.pop(reply.number, ()), reply.items, strict=True):
                    one.answered(answer)
        except grpc.RpcError:
            pass  # whatever it was, a call of its own meets it too, and says so
        finally:
            self._break()

    def _break(self) -> None:
        """What is not answered will not be, here."""
        self._broken = True
        self._wake.set()
        groups = [self._asked, *self._under_way.values()]
        self._asked, self._under_way = [], {}
        for group in groups:
            for one in group:
                one.answered(None)
