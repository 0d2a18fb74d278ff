"""The stream of updates: contributions in, acknowledgements out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from normserver import names, replies
from normserver.contributing import Contributing
from normserver.contributions import Outcome
from normserver.errors import InvalidArgument, ServiceError, Unavailable
from normserver.stream_memory import Share
from normstats.v1 import normalization_service_pb2 as pb

# Contributions of one stream that may wait for their commit; the stream is not read further meanwhile.
_IN_FLIGHT = 1024


class _Queued(NamedTuple):
    sequence: int
    outcome: asyncio.Future[Outcome]
    held_bytes: int = 0


async def acknowledgements(
    frames: AsyncIterator[pb.UpdateRunningStatsStreamRequest], contributing: Contributing, share: Share
) -> AsyncIterator[pb.UpdateRunningStatsStreamResponse]:
    """Take contributions in as they come; acknowledge, in order, what is durable.

    When the server stops, what was taken in is still committed and acknowledged before the stream ends.

    Raises:
        ServiceError: a contribution was wrong, or the server stops; all before it were acknowledged.
    """
    first = await anext(aiter(frames), None)
    if first is None:
        return
    if first.WhichOneof("frame") != "open":
        raise InvalidArgument("frame", "is no opening frame; expected open first, then only updates")
    producer = names.check_producer(first.open.producer_id, "open.producer_id")
    share.give(share.last_bytes)
    yield pb.UpdateRunningStatsStreamResponse(acknowledged_sequence=await contributing.settled(producer))
    intake = _Intake(frames, producer, contributing, share)
    reader = asyncio.create_task(intake.read())
    reader.add_done_callback(intake.has_read)
    try:
        with contributing.lifetime.tells(reader):
            async for group in intake.durable():
                yield _acknowledgement(group)
    finally:
        reader.cancel()


class _Intake:
    """What one stream has sent and is not acknowledged yet."""

    def __init__(
        self,
        frames: AsyncIterator[pb.UpdateRunningStatsStreamRequest],
        producer: bytes,
        contributing: Contributing,
        share: Share,
    ) -> None:
        self._frames = frames
        self._producer = producer
        self._contributing = contributing
        self._share = share
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self._queue: deque[_Queued | None] = deque()
        self._arrived = asyncio.Event()

    async def read(self) -> None:
        """Queue contributions until the stream ends or one of them is wrong; cancelled when the server stops."""
        try:
            async for frame in self._frames:
                await self._room.acquire()
                self._put(await self._taken(frame))
                del frame  # while the next is waited for
        except ServiceError as error:
            self._end(error)
        except Exception as error:  # a bug: it is raised where the stream is answered
            self._end(error)
        else:
            self._put(None)

    def has_read(self, reader: asyncio.Task[None]) -> None:
        """The task that reads has ended; one that is cancelled before it begins does so without a step."""
        if reader.cancelled():
            self._end(Unavailable("the server is stopping; resume with another stream", reason="STOPPING"))

    async def durable(self) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """What has become durable, in order, as many at a time as there are."""
        while (item := await self._next()) is not None:
            # Shielded: what a broken stream has sent is committed whole, and leaves no gap where it was waited for.
            group = [(item.sequence, await asyncio.shield(item.outcome))]
            held_bytes = item.held_bytes
            while self._queue and (following := self._queue[0]) is not None and _is_durable(following):
                self._queue.popleft()
                group.append((following.sequence, following.outcome.result()))
                held_bytes += following.held_bytes
            self._share.give(held_bytes)
            for _ in group:
                self._room.release()
            yield group

    async def _taken(self, frame: pb.UpdateRunningStatsStreamRequest) -> _Queued:
        if frame.WhichOneof("frame") != "update":
            raise InvalidArgument("frame", "is no update; expected open first, then only updates")
        update, held_bytes = frame.update, self._share.last_bytes
        await self._contributing.room()
        outcome = await self._contributing.submit(
            self._producer, update.sequence, update.contributions, frame.data, "update."
        )
        return _Queued(update.sequence, outcome, held_bytes)

    async def _next(self) -> _Queued | None:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    def _put(self, item: _Queued | None) -> None:
        self._queue.append(item)
        self._arrived.set()

    def _end(self, error: Exception) -> None:
        failed: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        failed.exception()  # seen: nobody may be left to await it
        self._put(_Queued(0, failed))


def _is_durable(item: _Queued) -> bool:
    return item.outcome.done() and not item.outcome.cancelled() and item.outcome.exception() is None


def _acknowledgement(group: Sequence[tuple[int, Outcome]]) -> pb.UpdateRunningStatsStreamResponse:
    newest = {item.name: item for _, outcome in group for item in outcome.contributed}
    return pb.UpdateRunningStatsStreamResponse(
        acknowledged_sequence=group[-1][0],
        duplicate_count=sum(outcome.duplicate for _, outcome in group),
        contributed=[replies.contributed(item) for item in newest.values()],
    )
