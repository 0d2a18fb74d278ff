"""The door: who may come in, with what, and whether there is room. Decided once a call, and once a message.

What can be said of a call without its message is said before that is read: a server that has no room spends nothing on
receiving what it will not keep.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from normserver import connections
from normserver.access import rules
from normserver.access.credentials import Credentials, token_of
from normserver.access.grants import ANYONE, Identity
from normserver.access.quotas import Quotas
from normserver.access.shares import Shares, address_holder, share_of
from normserver.calls import Call
from normserver.errors import InvalidArgument, PermissionDenied, ResourceExhausted, ServiceError, Unauthenticated
from normserver.guard import ConnectionGuard
from normserver.metrics import Metrics

Context = ServicerContext[Any, Any]
Metadata = Iterable[tuple[str, str | bytes]]

# Streams that ask for no credentials (Health.Watch): in all, and of one address.
_PUBLIC_STREAMS, _PUBLIC_STREAMS_OF_ONE = 64, 16
# A stream that was ended and is still there has answers that are not read, and its end waits behind them: after so long
# its connection is closed.
_UNREAD_SECONDS = 4.0


class Received(NamedTuple):
    """A message as it came: what it says, or why it cannot be read; and how long it is."""

    message: Any
    size_bytes: int
    error: Exception | None = None


def receiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Received]:
    """A deserializer that never raises: gRPC would tell the caller UNKNOWN."""

    def received(serialized: bytes) -> Received:
        try:
            return Received(deserialize(serialized), len(serialized))
        except (DecodeError, ValueError) as error:
            return Received(None, len(serialized), error)

    return received


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is room for."""

    max_calls: int
    max_streams: int
    max_memory_bytes: int
    max_connections: int


class Door:
    """Lets calls in, and their messages."""

    def __init__(
        self,
        room: Room,
        metrics: Metrics,
        guard: ConnectionGuard,
        *,
        credentials: Credentials | None = None,
        certificates: bool = False,
        full: Mapping[str, Callable[[], str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        close: Callable[[Iterable[str]], int] = connections.close_all,
    ) -> None:
        """`certificates`: callers show theirs. `full`: of some methods, why there is no room for what they do."""
        self._room = room
        self._guard = guard
        self._shares = {streams: Shares() for streams in (False, True)}
        self._public = Shares()
        self._credentials = credentials
        self._certificates = certificates
        self._full = full or {}
        self._quotas = Quotas()
        self._clock = clock
        self._close = close
        self._calls = self._streams = self._public_streams = self._held_bytes = 0
        self._recheck: dict[int, Call] = {}  # open streams of known callers, by id()
        self._ended_at: dict[int, float] = {}  # of those, when they were told to end
        self._checked_at = -1
        metrics.held_bytes.set_function(lambda: self._held_bytes)
        metrics.calls_under_way.set_function(lambda: self._calls)

    def enter(self, path: str, metadata: Metadata, *, streams: bool) -> Call:
        """Let a call in, whose message was not read yet; `leave` when it ends.

        Raises:
            ServiceError: who calls is not known, may not, or there is no room.
        """
        call = Call(path, streams)
        if rules.is_public(path):
            call.identity = ANYONE
        elif path not in rules.RULES:
            raise PermissionDenied("nobody may call this", reason="NO_RULE")
        elif self._credentials is None:
            call.identity = ANYONE
        else:
            token = token_of(metadata)
            if token is not None or not self._certificates:
                self._admit(call, partial(self._credentials.known, token))
        if (error := self._why_not(call)) is not None:
            raise error
        if call.credentials is not None:
            self._take_share(call)
        self._count(call, 1)
        return call

    def known(self, metadata: Metadata) -> Identity | None:
        """Who calls by a token; None if none came. Changes nothing: it may be asked on any thread.

        Raises:
            Unauthenticated: the token is nobody's, or its time is over.
        """
        return ANYONE if self._credentials is None else self._credentials.known(token_of(metadata))

    def leave(self, call: Call) -> None:
        """It has ended; what it held is free."""
        self._held_bytes -= call.held_bytes
        self._recheck.pop(id(call), None)
        self._ended_at.pop(id(call), None)
        if call.gives_back is not None:
            call.gives_back()
        if call.caller and rules.is_public(call.path):
            self._guard.called_publicly(call.caller, -1, self._clock())
        self._count(call, -1)

    def recognize(self, call: Call, context: Context) -> None:
        """Know where the call comes from, and who makes it by his certificate, where no token told.

        Raises:
            ServiceError: it is nobody's, or he has had his quota.
        """
        if call.identity is None and self._credentials is not None:
            self._admit(call, partial(self._credentials.known, None, _certificate_names(context)))
        self.comes_from(call, context.peer())
        if call.share is not None:
            call.share.comes_from(call.caller)

    def comes_from(self, call: Call, caller: str) -> None:
        """Know the address that a call comes from. Where its identity says nothing, shares are counted by that.

        Raises:
            ResourceExhausted: its caller has had his share of streams, calls or connections.
        """
        call.caller = caller
        if rules.is_public(call.path):
            self._guard.called_publicly(caller, 1, self._clock())
        if call.gives_back is None:
            self._take_share(call)
        if call.holder and not rules.is_public(call.path):
            identity = call.identity
            own = 0 if identity is None else identity.limits.connections
            self._guard.called(caller, call.holder, own or share_of(self._room.max_connections), self._clock())

    def let_in(self, call: Call, received: Received) -> Any:
        """A message of a call.

        Raises:
            InvalidArgument: it is none.
            PermissionDenied: it needs what the caller is not granted.
            ResourceExhausted: he has had his quota.
        """
        call.received_bytes += received.size_bytes
        if not call.streams:
            self.hold(call, received.size_bytes)
        if call.taken is not None:
            call.taken.message(received.size_bytes)
        if isinstance(received.error, ServiceError):  # it says why itself
            raise received.error
        if received.error is not None:
            raise InvalidArgument("request", "cannot be read; expected the contract's message", reason="UNREADABLE")
        if call.identity is not ANYONE:
            self._check(call, received.message)
        return received.message

    async def wait(self, call: Call) -> None:
        """Wait until a stream may be read further, as far as its caller's rates go."""
        if call.taken is not None and (seconds := call.taken.seconds_until(self._clock())):
            await asyncio.sleep(seconds)

    def hold(self, call: Call, size_bytes: int) -> None:
        """So much more is kept in memory until the call ends."""
        call.held_bytes += size_bytes
        self._held_bytes += size_bytes

    def check_streams(self) -> None:
        """End open streams whose credentials were withdrawn or have expired, or whose grants no longer cover them.

        Streams of callers whose credentials still hold go on under the grants of now.
        """
        if self._credentials is None:
            return
        self._guard.withdraw(self._credentials.names())
        all_of_them = self._credentials.version != self._checked_at
        self._checked_at = self._credentials.version
        now, unread = self._clock(), set()
        for call in list(self._recheck.values()):
            if (ended_at := self._ended_at.get(id(call))) is not None:
                if now - ended_at >= _UNREAD_SECONDS:
                    unread.add(call.caller)
                continue
            assert call.identity is not None, "only known callers are looked up again"
            if all_of_them or self._credentials.has_expired(call.identity):
                try:
                    self._check_stream(call)
                except ServiceError as error:
                    self._ended_at[id(call)] = now
                    call.end(error)
        if unread:
            self._close(unread)

    def _check_stream(self, call: Call) -> None:
        assert call.credentials is not None, "the identity was looked up before"
        identity = _known(call.credentials())
        for need in call.needs:
            if not identity.may(need):
                raise identity.refuse(need)
        call.identity, call.taken = identity, self._quotas.of(identity, self._clock())

    def _admit(self, call: Call, credentials: Callable[[], Identity | None]) -> None:
        call.identity = identity = _known(credentials())
        call.credentials = credentials
        call.taken = self._quotas.of(identity, self._clock())
        if call.taken is not None and not call.streams and (seconds := call.taken.seconds_until(self._clock())):
            raise call.taken.refuse(seconds)

    def _count(self, call: Call, more: int) -> None:
        if rules.is_public(call.path):
            self._public_streams += more * call.streams
        elif call.streams:
            self._streams += more
        else:
            self._calls += more

    def _take_share(self, call: Call) -> None:
        """Count a call among those of its identity, or of its address.

        Raises:
            ResourceExhausted: it would be one too many.
        """
        limits = ANYONE.limits if call.identity is None else call.identity.limits
        if rules.is_public(call.path):
            if not call.streams:
                return
            shares, most = self._public, _PUBLIC_STREAMS_OF_ONE
        elif call.streams:
            shares, most = self._shares[True], limits.streams or share_of(self._room.max_streams)
        else:
            shares, most = self._shares[False], limits.calls or share_of(self._room.max_calls)
        if call.credentials is not None and call.identity is not None:
            call.holder = call.identity.name
        elif not (holder := address_holder(call.caller)):
            return  # callers by a socket: the folder's permissions say who they are, and all together have the limits
        else:
            call.holder = holder
        if not shares.take(call.holder, most):
            what, reason = ("streams", "STREAM_LIMIT") if call.streams else ("calls", "CALL_LIMIT")
            raise ResourceExhausted(
                f"{call.holder} has {most} {what} open, as many as one caller may have; end some, or ask for more",
                reason=reason,
            )
        call.gives_back = partial(shares.give, call.holder)
        if call.streams and call.credentials is not None:
            self._recheck[id(call)] = call

    def _why_not(self, call: Call) -> ServiceError | None:
        room = self._room
        if rules.is_public(call.path):
            if call.streams and self._public_streams >= _PUBLIC_STREAMS:
                return ResourceExhausted(
                    f"{_PUBLIC_STREAMS} streams of callers without credentials are open already", reason="STREAM_LIMIT"
                )
            return None
        if call.streams and self._streams >= room.max_streams:
            return ResourceExhausted(f"{room.max_streams} streams are open already", reason="STREAM_LIMIT")
        if not call.streams and self._calls >= room.max_calls:
            return ResourceExhausted(f"{room.max_calls} calls are under way already", reason="CALL_LIMIT")
        if self._held_bytes >= room.max_memory_bytes:
            return ResourceExhausted(f"calls hold {room.max_memory_bytes} bytes already", reason="MEMORY_FULL")
        if (full := self._full.get(call.path)) is not None and (sentence := full()):
            return ResourceExhausted(sentence)
        return None

    def _check(self, call: Call, message: Any) -> None:
        identity = call.identity
        assert identity is not None, "who calls is known before a message is"
        everywhere = identity.everywhere()
        needs = rules.RULES[call.path](message)
        if call.streams and (needs := tuple(needs)):
            call.needs = needs
        for need in needs:
            if (everywhere is None or need.scope > everywhere) and not identity.may(need):
                raise identity.refuse(need)


def _known(identity: Identity | None) -> Identity:
    if identity is None:
        raise Unauthenticated("who calls is not known here; bring a token: Authorization: Bearer TOKEN")
    return identity


def _certificate_names(context: Context) -> list[str]:
    shown: Mapping[str, Iterable[bytes]] = context.auth_context()
    names = [*shown.get("x509_subject_alternative_name", ()), *shown.get("x509_common_name", ())]
    return [name.decode(errors="replace") for name in names]
