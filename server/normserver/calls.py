"""One call: who makes it, and what it holds of the server until its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from normserver.access.grants import ANYONE, Identity, Need
from normserver.access.quotas import Taken
from normserver.errors import ServiceError
from normserver.stream_memory import Share


class Trace(Protocol):
    """What is told of a call to whoever traces it."""

    def phase(self, name: str, began: float, ended: float) -> None:
        """One of its phases, by the monotonic clock."""

    def end(self, code: str) -> None:
        """It has ended, with this gRPC code."""


@dataclass(slots=True)
class Call:
    """A call under way.

    `path` is /SERVICE/METHOD; `caller` is the address of whoever makes it; `entered_at` is the event loop's time.
    A stream also keeps what decides whether it may go on: `credentials` looks its identity up again, `needs` are those
    of its last message that needed any, and `task` serves it. `holder` is whose share it is counted in, an
    identity or an address, and `gives_back` ends that.
    """

    path: str
    streams: bool
    caller: str = ""
    identity: Identity | None = None
    taken: Taken | None = None
    share: Share | None = None
    held_bytes: int = 0
    received_bytes: int = 0
    entered_at: float = 0.0
    trace: Trace | None = None
    credentials: Callable[[], Identity | None] | None = None
    needs: tuple[Need, ...] = ()
    task: asyncio.Task[Any] | None = None
    ended: ServiceError | None = None
    holder: str = ""
    gives_back: Callable[[], None] | None = None
    method: str = field(init=False)

    def __post_init__(self) -> None:
        self.method = self.path.rpartition("/")[2]

    def end(self, error: ServiceError) -> None:
        """End a stream before its time: its task is cancelled, and its caller receives the error."""
        if self.task is not None and self.ended is None:
            self.ended = error
            self.task.cancel()


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def begin(call: Call) -> None:
    """What this task does from now on is this call's."""
    _current.set(call)


def current() -> Call | None:
    """The call that this task serves."""
    return _current.get()


def identity() -> Identity:
    """Who makes it."""
    call = _current.get()
    return ANYONE if call is None or call.identity is None else call.identity


def caller() -> str:
    """The address that it comes from. gRPC crashes when asked for it after a call's end, so it is asked for once."""
    call = _current.get()
    return "" if call is None else call.caller


def holder() -> str:
    """Whose share it is counted in: an identity, or an address; empty for a call by a socket without credentials."""
    call = _current.get()
    return "" if call is None else call.holder


def share() -> Share:
    """What this stream holds of all streams' memory."""
    call = _current.get()
    assert call is not None, "a call has entered before its handler runs"
    assert call.share is not None, "a stream has a share"
    return call.share
