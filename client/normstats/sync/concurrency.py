"""What differs between threads and asyncio, under names that normstats.aio.concurrency has too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

from normstats import channel
from normstats.bringing import Bringing
from normstats.errors import DeadlineExceeded
from normstats.security import Security

T = TypeVar("T")
R = TypeVar("R")

Condition = threading.Condition
Semaphore = threading.Semaphore
sleep = time.sleep


def open_channel(target: str, options: Sequence[channel.Option], security: Security) -> Any:
    """A channel to a target; connects at its first call."""
    chosen = channel.options([*security.options(), *options])
    if security.tls is None:
        return Bringing(grpc.insecure_channel(target, options=chosen), security)
    return Bringing(grpc.secure_channel(target, security.tls.credentials(), options=chosen), security)


def each(work: Callable[[T], R], items: Sequence[T], at_once: int) -> list[R]:
    """What work makes of each item, so many at once; the first error ends all."""
    if not items:
        return []
    with ThreadPoolExecutor(min(at_once, len(items)), thread_name_prefix="normalize") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def apart(work: Callable[[], T]) -> T:
    """What work returns that waits for a disk."""
    return work()


class Task:
    """Work in the background."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it ends."""
        self._thread.join()


def wait_until(condition: threading.Condition, holds: Callable[[], bool], timeout: float) -> None:
    """Wait, with the condition held, until something holds.

    Raises:
        DeadlineExceeded: it does not within the timeout.
    """
    if not condition.wait_for(holds, timeout):
        raise DeadlineExceeded(f"not done within {timeout:g} s; it goes on in the background")


class Conversation:
    """A call of streams both ways, a message at a time. Fails at once where nobody listens."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._outgoing: SimpleQueue[Any] = SimpleQueue()
        self._call = method(iter(self._outgoing.get, None), wait_for_ready=False)

    def send(self, message: Any) -> None:
        """Send a message."""
        self._outgoing.put(message)

    def receive(self, timeout: float | None = None) -> Any:
        """The next message.

        Raises:
            grpc.RpcError: the call has ended.
            DeadlineExceeded: it does not come within the timeout.
        """
        if timeout is None:
            return next(self._call)
        late = threading.Timer(timeout, self._call.cancel)
        late.start()
        try:
            return next(self._call)
        except grpc.RpcError:
            if late.is_alive():
                raise
            raise DeadlineExceeded("not answered in time") from None
        finally:
            late.cancel()

    def end(self) -> None:
        """Hang up."""
        self._outgoing.put(None)
        self._call.cancel()
