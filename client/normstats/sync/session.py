"""Normalizations on streams that stay open: a thread that calls takes one that is idle, and gives it back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

import grpc

from normstats import sessions
from normstats.errors import DeadlineExceeded, NormstatsError, Unavailable
from normstats.sessions import Message, Reply, Request

# Streams that may be open and idle; those of more threads end after their call.
_MOST_IDLE = 32
# How late a call may hear that its time is over.
_WATCH_SECONDS = 0.05


class Session:
    """A connection's streams. Whatever ends one, its request goes by a call of its own, repeated until its timeout."""

    def __init__(self, method: Callable[[], Any], alone: Callable[[Request, float], Reply]) -> None:
        """`method` gives the stub's NormalizeManyStream; `alone` calls Normalize within so many seconds."""
        self._method = method
        self._alone = alone
        self._used = False
        self._process = os.getpid()
        self._idle: list[_Talk] = []
        self._watch = _Watch()

    def call(self, request: Request, timeout: float) -> Reply:
        """Normalize a tensor.

        Raises:
            NormstatsError: it failed.
        """
        if not self._used:  # one call alone is no use for a stream
            self._used = True
            return self._alone(request, timeout)
        if self._process != os.getpid():  # a fork's streams are its parent's
            self._process, self._idle, self._watch = os.getpid(), [], _Watch()
        deadline = monotonic() + timeout
        talk = self._taken()
        self._watch.begin(talk, deadline)
        try:
            answer: Reply | NormstatsError
            (answer,) = talk.ask(Message([request], 1)).items
        except (grpc.RpcError, StopIteration) as error:
            talk.end()
            if monotonic() >= deadline:
                raise DeadlineExceeded(f"not answered within {timeout:g} s") from error
            return self._alone(request, deadline - monotonic())
        except BaseException:
            talk.end()
            raise
        finally:
            self._watch.end(talk)
        self._give(talk)
        if isinstance(answer, Unavailable):
            return self._alone(request, deadline - monotonic())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the streams."""
        while self._idle:
            self._idle.pop().end()

    def _taken(self) -> _Talk:
        while True:
            try:
                talk = self._idle.pop()
            except IndexError:
                return _Talk(self._method())
            if monotonic() < talk.ends:
                return talk
            talk.end()

    def _give(self, talk: _Talk) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(talk)
        else:
            talk.end()


class _Talk:
    """One stream, of one thread at a time."""

    def __init__(self, method: Any) -> None:
        self.ends = monotonic() + sessions.LIFE_SECONDS
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._call = method(iter(self._messages.get, None), wait_for_ready=False)

    def ask(self, message: Message) -> Any:
        """The answer to a message.

        Raises:
            grpc.RpcError, StopIteration: the stream has ended.
        """
        self._messages.put(message)
        return next(self._call)

    def end(self) -> None:
        """Hang up."""
        self._messages.put(None)
        self._call.cancel()


class _Watch:
    """Ends streams whose call takes too long: a thread that looks now and then, while there are calls."""

    def __init__(self) -> None:
        self._deadlines: dict[_Talk, float] = {}
        self._lock = threading.Lock()
        self._looks = False

    def begin(self, talk: _Talk, deadline: float) -> None:
        """From here on the stream ends at the deadline."""
        with self._lock:
            self._deadlines[talk] = deadline
            if not self._looks:
                self._looks = True
                threading.Thread(target=self._look, name="normalize-watch", daemon=True).start()

    def end(self, talk: _Talk) -> None:
        """It has been answered, or has ended."""
        self._deadlines.pop(talk, None)

    def _look(self) -> None:
        while True:
            sleep(_WATCH_SECONDS)
            now = monotonic()
            for talk, deadline in list(self._deadlines.items()):
                if deadline <= now:
                    talk.end()
            with self._lock:
                if not self._deadlines:  # who calls after this sees that nobody looks
                    self._looks = False
                    return
