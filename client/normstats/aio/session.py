"""Normalizations on a stream that stays open; small ones of one turn of the event loop share a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import grpc

from normstats import chunking, sessions
from normstats.errors import DeadlineExceeded, NormstatsError, Unavailable
from normstats.sessions import Message, Reply, Request

Answer = Reply | NormstatsError | None
"""What comes of a request; None: it must be asked again, by a call of its own."""

# Streams of requests that share no message.
_MOST_EXCHANGES = 4


@dataclass(eq=False, slots=True)
class _Asked:
    """A request, and what comes of it."""

    request: Request
    answer: asyncio.Future[Answer]

    def expire(self) -> None:
        """Its time is over."""
        self.answered(DeadlineExceeded("not answered in time"))

    def answered(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class AsyncSession:
    """A connection's streams, and others when they have served their time.

    Nothing waits for a timer, nor a small request for another's answer: who is by himself loses nothing. Whatever ends
    a stream, what it left unanswered goes by a call of its own, which is repeated until its timeout.
    """

    def __init__(self, method: Callable[[], Any], alone: Callable[[Request, float], Awaitable[Reply]]) -> None:
        """`method` gives the stub's NormalizeManyStream; `alone` calls Normalize within so many seconds."""
        self._method = method
        self._alone = alone
        self._used = False
        self._talk: _Talk | None = None
        self._exchanges = _Exchanges(method)

    async def call(self, request: Request, timeout: float) -> Reply:
        """Normalize a tensor.

        Raises:
            NormstatsError: it failed.
        """
        if not self._used:  # one call alone is no use for a stream
            self._used = True
            return await self._alone(request, timeout)
        deadline = asyncio.get_running_loop().time() + timeout
        # Small requests do not stand in line behind large ones.
        ask = self._together if chunking.goes_with_others(request) else self._exchanges.ask
        answer = await ask(request, deadline)
        if answer is None or isinstance(answer, Unavailable):
            return await self._alone(request, deadline - asyncio.get_running_loop().time())
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """End the streams."""
        self._exchanges.close()
        if self._talk is not None:
            await self._talk.close()

    async def _together(self, request: Request, deadline: float) -> Answer:
        """The answer to a request that may share a message."""
        loop = asyncio.get_running_loop()
        asked = _Asked(request, loop.create_future())
        timer = loop.call_at(deadline, asked.expire)
        self._stream().ask(asked)
        try:
            return await asked.answer
        finally:
            timer.cancel()

    def _stream(self) -> _Talk:
        if self._talk is None or self._talk.over:
            if self._talk is not None:
                self._talk.retire()
            self._talk = _Talk(self._method()(wait_for_ready=False))
        return self._talk


class _Exchanges:
    """Streams on which one request is answered before the next is sent: of large ones no more gain by company.

    There are some, which may lead to as many servers; who finds all of them busy waits for his turn.
    """

    def __init__(self, method: Callable[[], Any]) -> None:
        self._method = method
        self._room = asyncio.Semaphore(_MOST_EXCHANGES)
        self._idle: list[_Exchange] = []
        self._closed = False

    async def ask(self, request: Request, deadline: float) -> Answer:
        """The answer to a request."""
        try:
            async with asyncio.timeout_at(deadline), self._room:
                return await self._asked(request)
        except TimeoutError:
            return DeadlineExceeded("not answered in time")

    def close(self) -> None:
        """End those that are idle; others end with their answers."""
        self._closed = True
        while self._idle:
            self._idle.pop().call.cancel()

    async def _asked(self, request: Request) -> Answer:
        exchange = self._taken()
        answer = None
        try:
            await exchange.call.write(Message([request], 1))
            if (reply := await exchange.call.read()) is not grpc.aio.EOF:
                (answer,) = reply.items
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # whatever it was, a call of its own meets it too, and says so
        finally:
            if answer is None or self._closed:
                exchange.call.cancel()
            else:
                self._idle.append(exchange)
        return answer

    def _taken(self) -> _Exchange:
        while self._idle:
            exchange = self._idle.pop()
            if monotonic() < exchange.ends:
                return exchange
            exchange.call.cancel()
        return _Exchange(self._method()(wait_for_ready=False), monotonic() + sessions.LIFE_SECONDS)


class _Exchange(NamedTuple):
    """A stream, and when it has served its time."""

    call: Any
    ends: float


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
