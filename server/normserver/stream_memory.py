"""What streams may hold of this server's memory, all together: however many there are, and however slowly they read.

A stream asks for its share before its next message is read, and so leaves that to its sender, which flow control stops.
While others wait, shares that were asked for and are not used are given back, and connections are closed whose callers
read no answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from normserver import connections
from normserver.errors import ResourceExhausted
from normserver.metrics import Metrics

log = logging.getLogger(__name__)

# A stream's only message, if it is no larger, never waits: there are as many such as there are streams.
SMALL_BYTES = 1 << 16
# While others wait: a share that is not used for so long is given back, and a connection none of whose answers is read
# for so long is closed. Slower readers are served as long as nobody needs what they hold.
_IDLE_SECONDS, _STALLED_SECONDS = 0.05, 1.0
# Messages that are here already may wait, up to this part of all memory; those of streams that come then are refused.
_IN_HAND = 0.25
_LOOK_SECONDS = 0.1


class _Waiting(NamedTuple):
    """Somebody who waits for memory."""

    size_bytes: int
    granted: asyncio.Future[None]


class StreamMemory:
    """The memory of all streams."""

    def __init__(
        self,
        limit_bytes: int,
        metrics: Metrics,
        *,
        close: Callable[[str], bool] = connections.close,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`close` closes the connection from an address; gRPC then ends its streams, which frees what they hold."""
        self._limit_bytes = limit_bytes
        self._metrics = metrics
        self._close = close
        self.clock = clock
        self._held_bytes = 0
        self._active = 0
        self._in_hand_bytes = 0
        self._shares: set[Share] = set()
        self._waiting: deque[_Waiting] = deque()
        self._look: asyncio.TimerHandle | None = None
        metrics.stream_bytes.set_function(lambda: self._held_bytes)

    def share(self, task: asyncio.Task[object], expected_bytes: Sequence[int] = ()) -> Share:
        """One stream's share, until the task that serves it ends. Its first messages may hold `expected_bytes`."""
        share = Share(self, expected_bytes)
        self._shares.add(share)
        task.add_done_callback(lambda _: self._leave(share))
        return share

    async def keep(self, size_bytes: int) -> None:
        """Take so much for a message that is here already, and waits in memory too.

        Raises:
            ResourceExhausted: too much is waiting already.
        """
        if self._in_hand_bytes and self._in_hand_bytes + size_bytes > self._limit_bytes * _IN_HAND:
            raise ResourceExhausted(
                f"messages of streams hold {self._held_bytes} bytes already, and more wait", reason="MEMORY_FULL"
            )
        self._in_hand_bytes += size_bytes
        try:
            await self.take(size_bytes)
        finally:
            self._in_hand_bytes -= size_bytes

    async def take(self, size_bytes: int) -> None:
        """Take so much, when it is there. What is larger than all is given to one at a time."""
        if not self._waiting and self._has(size_bytes):
            self._held_bytes += size_bytes
            return
        waiting = _Waiting(size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._look is None:
            self._relieve()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting.granted.done() and not waiting.granted.cancelled():
                self.give(size_bytes)
            else:
                self._waiting.remove(waiting)
                self._grant()
            raise

    @property
    def fair_bytes(self) -> int:
        """What each stream may hold beyond its first message: the same as any other that has one here."""
        return self._limit_bytes // max(1, self._active)

    def count_active(self, more: int) -> None:
        """So many more streams have a message here, or wait for one."""
        self._active += more

    def add(self, size_bytes: int) -> None:
        """Count what is there already."""
        self._held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give so much back."""
        self._held_bytes -= size_bytes
        self._grant()

    def _has(self, size_bytes: int) -> bool:
        return self._held_bytes + size_bytes <= self._limit_bytes or not self._held_bytes

    def _grant(self) -> None:
        while self._waiting and self._has(self._waiting[0].size_bytes):
            first = self._waiting.popleft()
            self._held_bytes += first.size_bytes
            first.granted.set_result(None)

    def _relieve(self) -> None:
        """While somebody waits, look for what is held in vain."""
        self._look = None
        now = self.clock()
        for share in self._shares:
            share.give_up_idle(now - _IDLE_SECONDS)
        if self._waiting:
            self._close_stalled(now - _STALLED_SECONDS)
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._relieve)

    def _close_stalled(self, before: float) -> None:
        """Close the connections all of whose streams that hold memory are stalled."""
        stalled: dict[str, bool] = {}
        for share in self._shares:
            if share.held_bytes:
                stalled[share.caller] = stalled.get(share.caller, True) and share.is_stalled(before)
        for caller, is_stalled in stalled.items():
            if is_stalled and self._close(caller):
                self._metrics.connections_cut.inc()
                log.warning(
                    "connection closed: its answers are not read, and others need the memory", extra={"caller": caller}
                )

    def _leave(self, share: Share) -> None:
        self._shares.discard(share)
        share.give_all()


class Share:
    """What one stream holds."""

    def __init__(self, memory: StreamMemory, expected_bytes: Sequence[int]) -> None:
        self._memory = memory
        self._first_bytes = deque(expected_bytes)
        self._expected_bytes = self._first_bytes.popleft() if self._first_bytes else 0
        self.caller = ""
        """Where the stream comes from."""
        self.held_bytes = 0
        """What its messages hold."""
        self.last_bytes = 0
        """What the message holds that came last."""
        self._reserved_bytes = 0
        self._reserved_at = 0.0
        self._writing_since: float | None = None
        self._given = asyncio.Event()
        self._active = self._ended = False

    async def may_read(self) -> None:
        """Wait until the next message may be read, which may be as large as the one before."""
        if self._reserved_bytes:
            return
        while self.held_bytes and self.held_bytes + self._expected_bytes > self._memory.fair_bytes:
            self._given.clear()
            await self._given.wait()
        if self.held_bytes or self._expected_bytes > SMALL_BYTES:
            self._count()
            await self._memory.take(self._expected_bytes)
            self._reserved_bytes, self._reserved_at = self._expected_bytes, self._memory.clock()

    async def hold(self, size_bytes: int) -> None:
        """A message is here: so much is held until it is given back. What was not expected waits for its share.

        Raises:
            ResourceExhausted: too much is waiting already.
        """
        self._expected_bytes = self._first_bytes.popleft() if self._first_bytes else size_bytes
        self.last_bytes = size_bytes
        self._count()
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        if reserved or (size_bytes <= SMALL_BYTES and not self.held_bytes):
            self._memory.add(size_bytes)
            self._memory.give(reserved)
        else:
            await self._memory.keep(size_bytes)
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """So much is held no more."""
        if not self._ended:
            self.held_bytes -= size_bytes
            self._memory.give(size_bytes)
            self._count(idle=not self.held_bytes and not self._reserved_bytes)
            self._given.set()

    def writes(self) -> None:
        """An answer is on its way to the caller from now on."""
        self._writing_since = self._memory.clock()

    def has_written(self) -> None:
        """It is read, or will fit into buffers."""
        self._writing_since = None

    def is_stalled(self, before: float) -> bool:
        """Whether an answer is on its way since before that time."""
        return self._writing_since is not None and self._writing_since < before

    def give_up_idle(self, before: float) -> None:
        """Give back what was reserved before that time, for a message that does not come."""
        if self._reserved_bytes and self._reserved_at < before:
            reserved, self._reserved_bytes = self._reserved_bytes, 0
            self._memory.give(reserved)
            self._count(idle=not self.held_bytes)

    def give_all(self) -> None:
        """The stream has ended: all that it held is free."""
        if not self._ended:
            self._ended = True
            self._memory.give(self.held_bytes + self._reserved_bytes)
            self.held_bytes = self._reserved_bytes = 0
            self._count(idle=True)

    def _count(self, *, idle: bool = False) -> None:
        """Be one of those among whom the memory is shared, or not."""
        active = not idle and not self._ended
        if active != self._active:
            self._active = active
            self._memory.count_active(1 if active else -1)
