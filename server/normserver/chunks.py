"""One tensor in chunks: each is normalized where it was received, if that is brief, or else in turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any, NamedTuple

from normserver import replies, validate
from normserver.batcher import Alike, Batcher, Job
from normserver.codec import Encoded, Reply
from normserver.engine import Batch, Plan, Resolved
from normserver.errors import InvalidArgument, ServiceError
from normserver.forms import CHUNK, Form, Forms
from normserver.metrics import Metrics
from normserver.planner import Planner
from normserver.stream_memory import Share
from normserver.validate import Wanted
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire.carried import Carried

# Chunks of one stream that wait for their turn, or were computed and are not answered yet.
_CHUNKS_UNDER_WAY = 4
# Kinds of chunks of one tensor that are remembered: all but the last are of one.
_KINDS = 2

Frame = Carried[pb.NormalizeStreamRequest]
Write = Callable[[bytes], Awaitable[None]]


class Chunks:
    """Answers tensors in chunks."""

    def __init__(self, planner: Planner, batcher: Batcher, metrics: Metrics) -> None:
        self._planner = planner
        self._batcher = batcher
        self._metrics = metrics
        self._forms = Forms()

    async def serve(self, frames: AsyncIterator[Frame], caller: str, write: Write, share: Share) -> None:
        """Normalize chunk after chunk, in order, all by the statistics that the opening frame found.

        Raises:
            ServiceError: a frame is wrong; the chunks before it were answered.
        """
        first = await anext(frames, None)
        if first is None:
            return
        if first.message.WhichOneof("frame") != "open":
            raise InvalidArgument("frame", "is no opening frame; expected open first, then only chunks")
        opening = first.message.open
        wanted = validate.wanted(opening, "open.")
        resolved = await self._planner.resolve(wanted)
        plan = validate.chunked(resolved.plan, opening)
        share.give(share.last_bytes)
        del first, opening
        stream = _Stream(self._batcher, self._metrics, self._likes(wanted, resolved, plan), caller, write, share)
        try:
            await stream.serve(frames)
        finally:
            await stream.end()

    def _likes(self, wanted: Wanted, resolved: Resolved, plan: Plan) -> _Likes:
        """What the chunks of one tensor are like."""
        reply = replies.normalized_chunk(plan.mode, resolved.version)
        if plan is resolved.plan and self._planner.at_hand(wanted) is resolved:
            # A spec is the same object when it comes again; another in its place would only share the forms.
            target = wanted.target if isinstance(wanted.target, str) else id(wanted.target)
            return _Likes(self._forms, target, plan, reply, lambda form: self._batcher.of_form(form, resolved, 1))
        # With moments of its own, or a large spec: nothing of it is kept when the stream ends.
        own = lru_cache(maxsize=_KINDS)(lambda form: Alike(form, plan, reply))
        return _Likes(self._forms, None, plan, reply, own)


class _Likes(NamedTuple):
    """What all chunks of a tensor share, and what makes of a form what those of that form share."""

    forms: Forms
    target: str | int | None
    plan: Plan
    reply: Reply
    of_form: Callable[[Form], Alike]

    def of(self, chunk: pb.NormalizeStreamRequest.Chunk) -> Alike | None:
        """What a chunk that was checked is like; None if it is padded, empty, or says much."""
        form = self.forms.of_chunk(self.target, chunk)
        return None if form is None else self.of_form(form)


class _UnderWay(NamedTuple):
    """A chunk that was begun, and what it holds of the stream's share."""

    begun: asyncio.Future[Encoded]
    held_bytes: int


class _Stream:
    """One tensor.

    As long as chunks are brief each is computed where it was received, and answered while the next is read, if the
    share of memory allows that. Others are under way while more are read.
    """

    def __init__(
        self,
        batcher: Batcher,
        metrics: Metrics,
        likes: _Likes,
        caller: str,
        write: Write,
        share: Share,
    ) -> None:
        self._batcher = batcher
        self._metrics = metrics
        self._likes = likes
        self._caller = caller
        self._write = write
        self._share = share
        self._row_shape: tuple[int, ...] | None = None
        # What was said of the last chunk, and what it is like; those that say the same may share the message.
        self._said: object = None
        self._alike: Alike | None = None
        self._under_way: deque[_UnderWay] = deque()
        self._reading: asyncio.Task[Frame | None] | None = None

    async def serve(self, frames: AsyncIterator[Frame]) -> None:
        """Until there are no more chunks."""
        while (frame := await self._next(frames)) is not None:
            held_bytes = self._share.last_bytes
            if self._reading is None and self._share.has_room and len(self._under_way) < _CHUNKS_UNDER_WAY - 1:
                self._reading = asyncio.create_task(_read(frames))  # it comes while this one is answered
            try:
                answer = await self._begun(frame)
            except ServiceError:
                await self._answer_all()
                raise
            del frame  # with what it holds, while it is answered, and the next is waited for
            if isinstance(answer, bytes):
                await self._answer(answer, held_bytes)
            else:
                self._under_way.append(_UnderWay(answer, held_bytes))
            del answer
        await self._answer_all()

    async def end(self) -> None:
        """Withdraw what is left."""
        left: list[asyncio.Future[Any]] = [chunk.begun for chunk in self._under_way]
        if self._reading is not None:
            left.append(self._reading)
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _next(self, frames: AsyncIterator[Frame]) -> Frame | None:
        """The next frame; meanwhile what is under way is answered when it is done."""
        while self._under_way:
            if self._reading is None and len(self._under_way) < _CHUNKS_UNDER_WAY:
                self._reading = asyncio.create_task(_read(frames))
            waited = [future for future in (self._under_way[0].begun, self._reading) if future is not None]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            del waited  # with the answer, while the next frame is waited for
            if self._under_way[0].begun.done():
                await self._answer_first()
            elif self._reading is not None:
                break
        reading, self._reading = self._reading, None
        try:
            return await (reading or anext(frames, None))
        except ServiceError:
            await self._answer_all()
            raise

    async def _begun(self, frame: Frame) -> bytes | asyncio.Future[Encoded]:
        """A chunk's answer, if it is brief and nothing is before it; otherwise what becomes of it.

        Raises:
            ServiceError: it is wrong, or cannot be normalized.
        """
        alike, batch = self._alike, None
        if frame.message is not self._said or (alike is not None and len(frame.data) != alike.form.size_bytes):
            batch = self._checked(frame)
            alike = self._alike
        self._metrics.received_bytes.inc(len(frame.data))
        if not self._under_way and alike is not None and self._batcher.are_brief([alike]):
            (result,) = self._batcher.alike(alike, [frame.data])
            if isinstance(result, Exception):
                raise result
            return self._sent(result)
        await self._batcher.room()
        batch = batch or self._checked(frame)
        return self._batcher.begin(Job(self._likes.plan, batch, self._likes.reply, self._caller, CHUNK))

    def _checked(self, frame: Frame) -> Batch:
        """A chunk as a batch; it is remembered what was said of it.

        Raises:
            InvalidArgument: it is none, or does not go with those before.
        """
        if frame.message.WhichOneof("frame") != "chunk":
            raise InvalidArgument("frame", "is no chunk; expected open first, then only chunks")
        batch = validate.chunk(frame.message.chunk, frame.data, self._row_shape)
        self._row_shape = tuple(batch.x.shape[1:])
        self._alike = self._likes.of(frame.message.chunk)
        self._said = None if self._alike is None else frame.message
        return batch

    async def _answer_all(self) -> None:
        while self._under_way:
            await self._answer_first()

    async def _answer_first(self) -> None:
        begun, held_bytes = self._under_way[0]
        answer = self._sent(await self._batcher.ended(begun, CHUNK))
        self._under_way.popleft()
        del begun
        await self._answer(answer, held_bytes)

    async def _answer(self, answer: bytes, held_bytes: int) -> None:
        await self._write(answer)
        self._share.give(held_bytes)

    def _sent(self, result: Encoded) -> bytes:
        self._metrics.sent_bytes.inc(result.size_bytes)
        return result.sent


async def _read(frames: AsyncIterator[Frame]) -> Frame | None:
    return await anext(frames, None)
