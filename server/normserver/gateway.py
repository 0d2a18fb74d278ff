"""Calls that come over HTTP, for the console: some of the contract's, through the same door and by the same handlers.

Messages are the contract's own, so that what a page shows is what a client is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from google.protobuf.message import Message
from google.rpc import status_pb2

from normserver import audit, calls, status
from normserver.access.grants import ANYONE, Identity
from normserver.calls import Call
from normserver.door import Door, Received
from normserver.errors import PermissionDenied, ServiceError, Unauthenticated, Unavailable
from normserver.lifetime import Lifetime
from normserver.observing import Observed, Observer
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceServicer

_SERVICE = pb.DESCRIPTOR.services_by_name["NormalizationService"]

READS = (
    "GetActivity",
    "GetHistory",
    "GetRunningStats",
    "GetDevice",
    "GetNormalizer",
    "ListNormalizers",
    "ListSnapshots",
    "CompareSnapshots",
)
WATCHES = ("WatchActivity", "WatchRunningStats")
# What changes something: for those alone who bring a token, also where nobody is asked who he is. Whatever page a
# browser shows can send requests to this machine, and cannot know a token.
WRITES = ("CreateSnapshot", "RestoreSnapshot", "DeleteSnapshot", "UpdateNormalizer")

# A comparison over HTTP shows so many features: as JSON, a million would keep the GIL from all other calls for seconds.
MAX_FEATURES = 10_000
# A larger answer is read on a thread.
_LARGE_BYTES = 1 << 20

# A page is told of changes no more often than this: drawing takes longer.
_APART_SECONDS = 0.1


class Refused(Exception):
    """A call that ended with an error."""

    def __init__(self, told: status_pb2.Status) -> None:
        super().__init__(told.message)
        self.told = told


class Gateway:
    """Makes such calls. Lives on the event loop."""

    def __init__(
        self,
        service: NormalizationServiceServicer,
        door: Door,
        observer: Observer,
        lifetime: Lifetime,
    ) -> None:
        self._service = service
        self._door = door
        self._observer = observer
        self._lifetime = lifetime

    def check_caller(self, method: str, authorization: str, caller: str) -> None:
        """Check the caller's token alone. Safe on any thread, so that callers without one cost the event loop nothing.

        Raises:
            Refused: the caller is not known, or this server lets nobody do this.
        """
        call = Call(f"/{_SERVICE.full_name}/{method}", method in WATCHES, caller)
        try:
            _check(method, self._door.known(_metadata(authorization)))
        except ServiceError as error:
            with self._observer.observed(call) as observed:
                raise _refused(method, observed, error) from error

    async def call(
        self, method: str, receive: Callable[[], Awaitable[Received]], authorization: str, caller: str
    ) -> Message:
        """One call of READS or WRITES. `receive` gets its message, once there is room for that.

        Raises:
            Refused: it ended with an error.
        """
        async with self._let_in(method, receive, authorization, caller) as (call, request):
            if isinstance(request, pb.CompareSnapshotsRequest) and (not request.limit or request.limit > MAX_FEATURES):
                request.limit = MAX_FEATURES
            reply = await getattr(self._service, method)(request, None)
            if isinstance(reply, bytes) and len(reply) > _LARGE_BYTES:
                reply = await asyncio.to_thread(_read, method, reply)
            reply = _read(method, reply)
            audit.tell(call, request, reply)
            return reply

    async def watch(
        self,
        method: str,
        receive: Callable[[], Awaitable[Received]],
        authorization: str,
        caller: str,
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """One call of WATCHES: its messages go to `send`, which waits until there is need for another.

        Raises:
            Refused: it ended with an error.
        """
        this = asyncio.current_task()
        assert this is not None, "whoever calls is a task"
        async with self._let_in(method, receive, authorization, caller) as (_, request):
            with self._lifetime.tells(this):
                try:
                    async with aclosing(getattr(self._service, method)(request, None)) as messages:
                        async for message in messages:
                            await send(_read(method, message))
                            await asyncio.sleep(_APART_SECONDS)
                except asyncio.CancelledError:
                    if not self._lifetime.stopping:
                        raise
                    raise Unavailable("the server is stopping; watch again", reason="STOPPING") from None

    @asynccontextmanager
    async def _let_in(
        self, method: str, receive: Callable[[], Awaitable[Received]], authorization: str, caller: str
    ) -> AsyncIterator[tuple[Call, Any]]:
        """Within this block the task makes a call that may be made, by this message."""
        call = Call(f"/{_SERVICE.full_name}/{method}", method in WATCHES, caller)
        with self._observer.observed(call) as observed:
            try:
                entered = self._door.enter(call.path, _metadata(authorization), streams=call.streams)
                try:
                    entered.task = asyncio.current_task() if entered.streams else None
                    self._door.comes_from(entered, caller)
                    _check(method, entered.identity)
                    calls.begin(entered)
                    yield entered, self._door.let_in(entered, await receive())
                except asyncio.CancelledError:
                    if entered.ended is None:
                        raise
                    raise entered.ended from None
                finally:
                    self._door.leave(entered)
            except Exception as error:
                raise _refused(method, observed, error) from error


def _metadata(authorization: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", authorization),) if authorization else ()


def _refused(method: str, observed: Observed, error: Exception) -> Refused:
    told = status.told(error, method)
    observed.failed(status.name_of(told), error)
    return Refused(told)


def request_of(method: str) -> type[Message]:
    """The message that a method takes."""
    return getattr(pb, _SERVICE.methods_by_name[method].input_type.name)  # type: ignore[no-any-return]


def repeats(kind: type[Message]) -> Mapping[str, bool]:
    """The fields of a message, and whether each may be given more than once."""
    return {field.name: field.is_repeated for field in kind.DESCRIPTOR.fields}


def _check(method: str, identity: Identity | None) -> None:
    if identity is None:
        raise Unauthenticated("who calls is not known here; bring a token: Authorization: Bearer TOKEN")
    if method in WRITES and identity is ANYONE:
        raise PermissionDenied(
            "this server asks nobody who he is, so that its console only reads; --credentials changes that",
            reason="READ_ONLY",
        )


def _read(method: str, message: Message | bytes) -> Message:
    """A handler may give what it has serialized already."""
    if isinstance(message, bytes):
        kind = getattr(pb, _SERVICE.methods_by_name[method].output_type.name)
        return kind.FromString(message)  # type: ignore[no-any-return]
    return message
