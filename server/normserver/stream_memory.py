"""What streams may hold of this server's memory, all together: however many there are, and however slowly they read.

A stream reserves its share before its next message is read, and so leaves that to its sender, which flow control stops.
While others wait, reservations that are not used are withdrawn, and connections closed whose callers read no answers.
What comes for a reservation that was withdrawn is in memory already: it takes those of others, who have nothing yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple
from weakref import WeakValueDictionary

from normserver import connections
from normserver.errors import ResourceExhausted
from normserver.metrics import Metrics

log = logging.getLogger(__name__)

# A stream's only message, if it is no larger, never waits: there are as many such as there are streams.
SMALL_BYTES = 1 << 16
# While others wait, a reservation is withdrawn when its connection has brought so many messages since for each that is
# reserved there, or none for so long: where many share a slow link, each waits for the others' bytes.
_TURNS, _SILENT_SECONDS = 4, 1.0
# While those of other connections wait, one is closed none of whose answers is read: all that hold memory have been on
# their way for a moment, and for so long less arrives than this. Slow readers are served, as slow as links are.
_MOMENT_SECONDS, _STALLED_SECONDS, _SLOWEST_BYTES_PER_SECOND = 0.1, 1.0, 1 << 16
_LOOK_SECONDS = 0.1
# A stream that rests has its reservation for so long.
_REST_SECONDS = 0.02


class _Connection:
    """What streams share that come from one address."""

    __slots__ = ("__weakref__", "caller", "delivered_bytes", "heard_at", "looked_at", "messages")

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.messages = 0
        self.heard_at = 0.0
        self.delivered_bytes = 0
        self.looked_at = -inf

    def is_due(self, writing_since: float, now: float) -> bool:
        """Whether to look at what arrives: for the first time since that began to be written, or after a while."""
        return self.looked_at <= writing_since or self.looked_at <= now - _STALLED_SECONDS

    def is_stalled(self, delivered_bytes: int, writing_since: float, now: float) -> bool:
        """Whether too little has arrived since this was asked last, when what is written now was on its way already."""
        seconds, arrived_bytes = now - self.looked_at, delivered_bytes - self.delivered_bytes
        was_looked_at = self.looked_at > writing_since
        self.looked_at, self.delivered_bytes = now, delivered_bytes
        return was_looked_at and arrived_bytes < seconds * _SLOWEST_BYTES_PER_SECOND


class _Waiting(NamedTuple):
    """Somebody who waits for memory."""

    connection: _Connection
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
        delivered_bytes: Callable[[Iterable[str]], Mapping[str, int]] = connections.delivered_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`close` closes the connection from an address; gRPC then ends its streams, which frees what they hold.
        `delivered_bytes` tells how much has arrived at callers.
        """
        self._limit_bytes = limit_bytes
        self._metrics = metrics
        self._close = close
        self._delivered_bytes = delivered_bytes
        self.clock = clock
        self._held_bytes = 0
        self._active = 0
        self._shares: set[Share] = set()
        self._connections: WeakValueDictionary[str, _Connection] = WeakValueDictionary()
        self._reserving: dict[Share, None] = {}  # the oldest first
        self._reserved_bytes = self._in_hand_bytes = 0
        self._in_hand: deque[_Waiting] = deque()
        self._waiting: deque[_Waiting] = deque()
        self._look: asyncio.TimerHandle | None = None
        metrics.stream_bytes.set_function(lambda: self._held_bytes)

    def share(self, task: asyncio.Task[object], expected_bytes: Sequence[int] = (), *, rests: bool = False) -> Share:
        """One stream's share, until the task that serves it ends. Its first messages may hold `expected_bytes`.

        One that `rests` may be silent for long between messages: once it is answered it keeps nothing for the next.
        """
        share = Share(self, expected_bytes, rests=rests)
        self._shares.add(share)
        task.add_done_callback(lambda _: self._leave(share))
        return share

    def connection(self, caller: str) -> _Connection:
        """The connection from an address."""
        return self._connections.setdefault(caller, _Connection(caller))

    async def reserve(self, share: Share, size_bytes: int) -> None:
        """Reserve so much for a stream's next message, when it is there."""
        if self.is_free(size_bytes):
            self._held_bytes += size_bytes
        else:
            await self._wait(self._waiting, share, size_bytes)
        share.reserved_bytes, share.reserved_at = size_bytes, self.clock()
        share.reserved_after = share.connection.messages
        self._reserving[share] = None
        self._reserved_bytes += size_bytes

    def is_free(self, size_bytes: int) -> bool:
        """Whether there is room for so much, and nobody waits for any."""
        return not self._in_hand and not self._waiting and self._has(size_bytes)

    def withdraw(self, share: Share) -> int:
        """What a stream has reserved, which it has no more; `give`, `add` or `take` tell whoever waits."""
        size_bytes, share.reserved_bytes = share.reserved_bytes, 0
        self._reserving.pop(share, None)
        self._reserved_bytes -= size_bytes
        self._held_bytes -= size_bytes
        return size_bytes

    async def take(self, share: Share, size_bytes: int) -> None:
        """Take so much for a stream's message that is here. What is larger than all is given to one at a time.

        Raises:
            ResourceExhausted: as much again is waiting already.
        """
        if not self._in_hand and self._make_room(size_bytes):
            self._held_bytes += size_bytes
            return
        if self._in_hand_bytes and self._in_hand_bytes + size_bytes > self._limit_bytes:
            raise ResourceExhausted(
                f"messages of streams hold {self._held_bytes} bytes already, and more wait", reason="MEMORY_FULL"
            )
        self._in_hand_bytes += size_bytes
        try:
            await self._wait(self._in_hand, share, size_bytes)
        finally:
            self._in_hand_bytes -= size_bytes

    async def _wait(self, waiters: deque[_Waiting], share: Share, size_bytes: int) -> None:
        waiting = _Waiting(share.connection, size_bytes, asyncio.get_running_loop().create_future())
        waiters.append(waiting)
        if self._look is None:
            self._relieve()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting in waiters:
                waiters.remove(waiting)
                self._grant()
            elif not waiting.granted.cancelled():
                self.give(size_bytes)
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
        self._grant()

    def give(self, size_bytes: int) -> None:
        """Give so much back."""
        self._held_bytes -= size_bytes
        self._grant()

    def _has(self, size_bytes: int) -> bool:
        return self._held_bytes + size_bytes <= self._limit_bytes or not self._held_bytes

    def _make_room(self, size_bytes: int) -> bool:
        """Whether there is room for a message that is here, once reservations are withdrawn, the oldest first."""
        arrived_bytes = self._held_bytes - self._reserved_bytes
        if arrived_bytes and arrived_bytes + size_bytes > self._limit_bytes:
            return False
        while not self._has(size_bytes):
            next(iter(self._reserving)).lose_reservation()
        return True

    def _grant(self) -> None:
        while self._in_hand and self._make_room(self._in_hand[0].size_bytes):
            self._grant_first(self._in_hand)
        while not self._in_hand and self._waiting and self._has(self._waiting[0].size_bytes):
            self._grant_first(self._waiting)

    def _grant_first(self, waiters: deque[_Waiting]) -> None:
        first = waiters.popleft()
        if not first.granted.cancelled():
            self._held_bytes += first.size_bytes
            first.granted.set_result(None)

    def _relieve(self) -> None:
        """While somebody waits, look for what is held in vain."""
        self._look = None
        now = self.clock()
        reserved = Counter(share.connection for share in self._reserving)
        for share in list(self._reserving):
            connection = share.connection
            is_silent = max(share.reserved_at, connection.heard_at) < now - _SILENT_SECONDS
            if is_silent or connection.messages - share.reserved_after > _TURNS * reserved[connection]:
                share.lose_reservation()
        self._grant()
        if self._in_hand or self._waiting:
            self._close_stalled(now)
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._relieve)

    def _close_stalled(self, now: float) -> None:
        """Close the connections all of whose streams that hold memory are stalled, if those of others wait."""
        waiting = {one.connection for one in (*self._in_hand, *self._waiting)}
        writes: dict[_Connection, list[float]] = {}
        for share in self._shares:
            if share.held_bytes:
                writes.setdefault(share.connection, []).append(share.writing_since)
        looked_at = [
            one
            for one, since in writes.items()
            if waiting - {one} and max(since) < now - _MOMENT_SECONDS and one.is_due(min(since), now)
        ]
        delivered = self._delivered_bytes([one.caller for one in looked_at]) if looked_at else {}
        for one in looked_at:
            if one.is_stalled(delivered.get(one.caller, 0), min(writes[one]), now) and self._close(one.caller):
                self._metrics.connections_cut.inc()
                log.warning(
                    "connection closed: its answers are not read, and others need the memory",
                    extra={"caller": one.caller},
                )

    def _leave(self, share: Share) -> None:
        self._shares.discard(share)
        share.give_all()


class Share:
    """What one stream holds."""

    def __init__(self, memory: StreamMemory, expected_bytes: Sequence[int], *, rests: bool) -> None:
        self._memory = memory
        self._rests = rests
        self._first_bytes = deque(expected_bytes)
        self._expected_bytes = self._first_bytes.popleft() if self._first_bytes else 0
        self.connection = _Connection("")
        """Where the stream comes from."""
        self.held_bytes = 0
        """What its messages hold."""
        self.last_bytes = 0
        """What the message holds that came last."""
        self.reserved_bytes = 0
        """What is reserved for the next."""
        self.messages = 0
        """How many have come."""
        self.reserved_at, self.reserved_after = 0.0, 0
        """Since when, and after how many messages of the connection."""
        self.writing_since = inf
        """When the answer began that is on its way to the caller."""
        self._given = asyncio.Event()
        self._active = self._ended = False

    @property
    def has_room(self) -> bool:
        """Whether another message would be within what each stream may hold."""
        return self.held_bytes + self._expected_bytes <= self._memory.fair_bytes

    def comes_from(self, caller: str) -> None:
        """The stream comes from this address."""
        self.connection = self._memory.connection(caller)

    async def may_read(self) -> None:
        """Wait until the next message may be read, which may be as large as the one before."""
        if self.reserved_bytes:
            return
        while self.held_bytes and not self.has_room:
            self._given.clear()
            await self._given.wait()
        if not self.held_bytes and (self._expected_bytes <= SMALL_BYTES or self._may_rest()):
            return
        self._count()
        await self._memory.reserve(self, self._expected_bytes)
        if self._rests:
            asyncio.get_running_loop().call_later(_REST_SECONDS, self._rest, self.messages)

    def _may_rest(self) -> bool:
        """Whether to wait for the next message without a reservation: it would be in nobody's way now."""
        return self._rests and self.messages > 0 and self._memory.is_free(self._expected_bytes)

    def _rest(self, messages: int) -> None:
        """A reservation for the message after so many is for what comes at once; others want it more than who rests."""
        if self.messages == messages and not self.held_bytes and self.reserved_bytes:
            self.lose_reservation()
            self._memory.give(0)

    async def hold(self, size_bytes: int) -> None:
        """A message is here: so much is held until it is given back. What was not expected waits for its share.

        Raises:
            ResourceExhausted: too much is waiting already.
        """
        self._expected_bytes = self._first_bytes.popleft() if self._first_bytes else size_bytes
        self.last_bytes = size_bytes
        self.messages += 1
        self.connection.heard_at, self.connection.messages = self._memory.clock(), self.connection.messages + 1
        self._count()
        reserved_bytes = self._memory.withdraw(self)
        if size_bytes <= reserved_bytes or (size_bytes <= SMALL_BYTES and not self.held_bytes):
            self._memory.add(size_bytes)
        else:
            await self._memory.take(self, size_bytes)
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """So much is held no more."""
        if not self._ended:
            self.held_bytes -= size_bytes
            self._memory.give(size_bytes)
            self._count(idle=not self.held_bytes and not self.reserved_bytes)
            self._given.set()

    def writes(self) -> None:
        """An answer is on its way to the caller from now on."""
        self.writing_since = self._memory.clock()

    def has_written(self) -> None:
        """It is read, or will fit into buffers."""
        self.writing_since = inf

    def lose_reservation(self) -> None:
        """What was reserved for the next message is wanted elsewhere."""
        self._memory.withdraw(self)
        self._count(idle=not self.held_bytes)

    def give_all(self) -> None:
        """The stream has ended: all that it held is free."""
        if not self._ended:
            self._ended = True
            self._memory.withdraw(self)
            self._memory.give(self.held_bytes)
            self.held_bytes = 0
            self._count(idle=True)

    def _count(self, *, idle: bool = False) -> None:
        """Be one of those among whom the memory is shared, or not."""
        active = not idle and not self._ended
        if active != self._active:
            self._active = active
            self._memory.count_active(1 if active else -1)
