# Generated from normstats/aio/connection.py by tools/generate_sync.py: do not edit.
"""One channel, its stub, and how a call is made: with a deadline, and with errors of our own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import grpc

from normstats import chunking, specs, tracing
from normstats.backoff import Backoff
from normstats.channel import Option, Stub
from normstats.errors import NormstatsError, connection_broke, from_grpc
from normstats.producer import Producer
from normstats.security import Security
from normstats.sessions import Reply, Request
from normstats.sync import concurrency
from normstats.sync.session import Session
from normstats.sync.shared_memory import SharedMemory
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import spec as spec_wire
from normstats.wire.carried import ManyCarried


class Connection:
    """What a client and its normalizers share."""

    def __init__(
        self,
        target: str,
        timeout: float,
        options: Sequence[Option],
        *,
        security: Security | None = None,
        shared_memory: bool = False,
    ) -> None:
        self._target = target
        self._options = options
        self._security = security or Security()
        self._opening = threading.Lock()
        self._channel: Any = None
        self._stub: Any = None
        self._others: dict[str, tuple[Any, Any]] = {}  # channel and stub of servers that this one sent us to
        self.timeout = timeout
        self.producer = Producer()
        self._specs: dict[str, specs.Spec] = {}
        self.memory = SharedMemory(lambda: self.stub.ShareMemory) if shared_memory else None
        self._session = Session(lambda: self.stub.NormalizeManyStream, self._alone)

    @property
    def stub(self) -> Any:
        """The contract's stub. Opened at first use: a channel belongs to the process and event loop that open it."""
        self._open()
        return self._stub

    def _open(self) -> None:
        with self._opening:
            if self._stub is None:
                self._channel = concurrency.open_channel(self._target, self._options, self._security)
                self._stub = Stub(self._channel)

    def stub_at(self, target: str) -> Any:
        """The contract's stub at another server's address; at this connection's own, if that is empty."""
        if not target:
            return self.stub
        with self._opening:
            if target not in self._others:
                channel = concurrency.open_channel(target, self._options, self._security)
                self._others[target] = channel, Stub(channel)
            return self._others[target][1]

    def call(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """A unary call. Where the server is away or cannot commit it is tried again, the same call, until the timeout.

        Raises:
            NormstatsError: it failed.
        """
        deadline = monotonic() + (self.timeout if timeout is None else timeout)
        backoff = Backoff()
        while True:
            try:
                return method(request, timeout=max(0.0, deadline - monotonic()))
            except grpc.RpcError as error:
                wait = backoff.next_seconds()
                if not connection_broke(error) or monotonic() + wait >= deadline:
                    raise from_grpc(error) from error
                concurrency.sleep(wait)

    def normalize(self, request: Request, timeout: float | None) -> Reply:
        """Normalize one tensor: on a stream that stays open, unless it is large, as that is less than a call costs.

        Raises:
            NormstatsError: it failed.
        """
        seconds = self.timeout if timeout is None else timeout
        if not chunking.goes_by_stream(request) or tracing.is_traced():
            return self._alone(request, seconds)
        return self._session.call(request, seconds)

    def normalize_many(self, several: Sequence[Request], timeout: float | None) -> Sequence[Reply | NormstatsError]:
        """Normalize small tensors by one message; of each its reply or its error.

        Raises:
            NormstatsError: all failed.
        """
        reply: ManyCarried = self.call(self.stub.NormalizeMany, several, timeout)
        return reply.items

    def _alone(self, request: Request, timeout: float) -> Reply:
        reply: Reply = self.call(self.stub.Normalize, request, timeout)
        return reply

    def spec_of(self, name: str, timeout: float | None = None) -> specs.Spec:
        """The spec of a normalizer, asked for once."""
        if name not in self._specs:
            reply = self.call(self.stub.GetNormalizer, pb.GetNormalizerRequest(name=name), timeout)
            self.remember(name, spec_wire.from_proto(reply.normalizer.spec))
        return self._specs[name]

    def remember(self, name: str, spec: specs.Spec) -> None:
        """This is the spec of that name."""
        self._specs[name] = spec

    def forget(self, name: str) -> None:
        """That name may stand for something else from now on."""
        self._specs.pop(name, None)

    def contribute(
        self, contributions: Sequence[pb.Contribution], timeout: float | None
    ) -> pb.UpdateRunningStatsResponse:
        """Send contributions under the next sequence; durable and counted once when this returns.

        Raises:
            NormstatsError: it failed.
        """
        request = pb.UpdateRunningStatsRequest(
            producer_id=self.producer.id, sequence=self.producer.next_sequence(), contributions=contributions
        )
        reply: pb.UpdateRunningStatsResponse = self.call(self.stub.UpdateRunningStats, request, timeout)
        return reply

    def close(self) -> None:
        """Close all channels; one that was never opened too, so that calls are refused from now on."""
        self._open()
        self._session.close()
        if self.memory is not None:
            self.memory.close()
        self._channel.close()
        for channel, _ in self._others.values():
            channel.close()
