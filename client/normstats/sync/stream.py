# Generated from normstats/aio/stream.py by tools/generate_sync.py: do not edit.
"""Contributions, pipelined: taken in at once, sent in the background, resumed after every break, counted once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from normstats import requests, specs
from normstats.backoff import Backoff
from normstats.errors import Cancelled, NormstatsError, from_grpc, may_begin_again
from normstats.producer import Producer
from normstats.sync import concurrency
from normstats.unacknowledged import Unacknowledged
from normstats.v1 import normalization_service_pb2 as pb

if TYPE_CHECKING:
    from normstats.sync.connection import Connection


class UpdateStream:
    """A stream of contributions to one normalizer. A context manager: leaving it waits until all of it is durable.

    What is taken in while a commit is on its way goes together in the next message, each batch still its own.

    An error of the server's (the normalizer was frozen, say) is raised by the next call, and by leaving.
    """

    def __init__(self, connection: Connection, name: str, spec: specs.Spec, window: int) -> None:
        self._connection = connection
        self._name = name
        self._spec = spec
        self._producer = Producer()
        self._updates = Unacknowledged(window)
        self._changed = concurrency.Condition()  # guards all below, and the updates
        self._error: NormstatsError | None = None
        self._conversation = 0  # counts connections, so that what belongs to an old one ends
        self._may_send = False
        self._leaving = False
        self._call: Any = None
        self._task: concurrency.Task | None = None

    @property
    def acknowledged(self) -> int:
        """How many updates of this stream are durable."""
        return self._updates.acknowledged

    def update(
        self,
        batch: Any,
        *,
        weights: Any = None,
        lengths: Any = None,
        mask: Any = None,
        time: float | datetime | None = None,
    ) -> None:
        """Take in a batch: its moments are taken now and sent soon. Waits while the window is full.

        Raises:
            InvalidArgument: the batch does not fit, or has values that are not finite.
            DeadlineExceeded: the window stays full for the connection's timeout.
            NormstatsError: the server refused an update before this one.
        """
        one = requests.contribution(
            self._name, self._spec, batch, weights=weights, lengths=lengths, mask=mask, time=time
        )
        with self._changed:
            self._until(lambda: not self._updates.is_full, None)
            self._updates.take_in(one)
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything taken in so far is durable.

        Raises:
            DeadlineExceeded: it is not within the timeout.
            NormstatsError: the server refused an update.
        """
        with self._changed:
            self._until(lambda: self._updates.is_empty, timeout)

    def __enter__(self) -> Self:
        self._task = concurrency.Task(self._run, name=f"normstats stream {self._name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self._leave()

    def _until(self, holds: Any, timeout: float | None) -> None:
        if self._task is None or self._leaving:
            raise Cancelled("the stream is not open; use it as a context manager")
        concurrency.wait_until(
            self._changed,
            lambda: self._error is not None or holds(),
            self._connection.timeout if timeout is None else timeout,
        )
        if self._error is not None:
            raise self._error

    def _leave(self) -> None:
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
        if self._call is not None:
            self._call.cancel()
        if self._task is not None:
            self._task.join()

    def _run(self) -> None:
        try:
            self._keep_connected()
        finally:
            if not self._leaving and self._error is None:  # nothing is sent any more: whoever waits is told
                self._fail(Cancelled("the stream has ended: its client was closed"))

    def _keep_connected(self) -> None:
        """Converse until the stream is left, or the server refuses an update."""
        backoff = Backoff()
        while not self._leaving:
            try:
                self._converse(backoff)
            except grpc.RpcError as error:
                if self._leaving:
                    return
                if not may_begin_again(error):
                    self._fail(from_grpc(error))
                    return
            concurrency.sleep(backoff.next_seconds())

    def _converse(self, backoff: Backoff) -> None:
        """One connection: the first reply tells what is durable already, the rest is sent again."""
        with self._changed:
            if self._leaving:
                return
            self._conversation += 1
            self._may_send = False
            self._updates.reconnect()
            # With the lock held: whoever leaves is seen above, or finds this call and cancels it.
            self._call = self._connection.stub.UpdateRunningStatsStream(
                self._frames(self._conversation), wait_for_ready=True
            )
        try:
            for reply in self._call:
                backoff.reset()
                with self._changed:
                    self._updates.acknowledge(reply.acknowledged_sequence)
                    self._may_send = True
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._conversation += 1
                self._changed.notify_all()

    def _frames(self, conversation: int) -> Iterator[pb.UpdateRunningStatsStreamRequest]:
        yield pb.UpdateRunningStatsStreamRequest(
            open=pb.UpdateRunningStatsStreamRequest.Open(producer_id=self._producer.id)
        )
        while True:
            with self._changed:
                update = self._updates.next_to_send() if self._may_send else None
                while update is None and not self._leaving and conversation == self._conversation:
                    self._changed.wait()
                    update = self._updates.next_to_send() if self._may_send else None
                if update is None or conversation != self._conversation:
                    return
            frame = pb.UpdateRunningStatsStreamRequest.Update(
                sequence=update.sequence, contributions=(update.contribution,)
            )
            yield pb.UpdateRunningStatsStreamRequest(update=frame)

    def _fail(self, error: NormstatsError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
