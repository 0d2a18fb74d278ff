"""Arrays in memory that the server sees too: asked for over a call that lasts as long as the connection."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import grpc

from normstats.aio import concurrency
from normstats.backoff import Backoff
from normstats.errors import connection_broke, from_grpc
from normstats.regions import Bytes, Pool, Region, opened, region_bytes
from normstats.v1 import normalization_service_pb2 as pb


class AsyncSharedMemory:
    """A connection's share of its server's memory."""

    def __init__(self, method: Callable[[], Any]) -> None:
        """`method` gives the stub's ShareMemory."""
        self._method = method
        self._pool = Pool()
        self._asking = concurrency.Semaphore(1)
        self._talk: concurrency.Conversation | None = None
        self.place_of = self._pool.place_of
        self.withhold = self._pool.withhold

    async def array(self, size_bytes: int, timeout: float) -> Bytes:
        """So many bytes, not cleared.

        Raises:
            FailedPrecondition: the server shares none, or none that this process can open.
            ResourceExhausted: it shares no more.
            Unavailable: no server within the timeout.
        """
        region = self._pool.take(size_bytes) or await self._lent(region_bytes(size_bytes), timeout)
        return self._pool.array(region, size_bytes)

    async def lost(self, name: bytes) -> None:
        """The server does not know this region: another has begun. Arrays stay, as memory like any other."""
        async with self._asking:
            if self._pool.knows(name):  # nobody else has noticed before
                await self._forget()

    async def close(self) -> None:
        """Give all back."""
        await self._forget()

    async def _forget(self) -> bool:
        """All is taken back; whether some of it lay idle."""
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.end()
        return self._pool.forget()

    async def _lent(self, size_bytes: int, timeout: float) -> Region:
        deadline, backoff = monotonic() + timeout, Backoff()
        while True:
            try:
                async with self._asking:
                    return await self._asked(size_bytes, max(0.0, deadline - monotonic()))
            except _Refused as refused:
                error = refused.error
                if refused.others_lay_idle and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    continue  # without those it may be enough
                wait = backoff.next_seconds()
                if not connection_broke(error) or monotonic() + wait >= deadline:
                    raise from_grpc(error) from error
                await concurrency.sleep(wait)

    async def _asked(self, size_bytes: int, timeout: float) -> Region:
        """Another region. Whatever goes wrong ends the conversation, so that no answer is taken for another's."""
        try:
            if self._talk is None:
                self._talk = concurrency.Conversation(self._method())
            await self._talk.send(pb.ShareMemoryRequest(allocate_bytes=size_bytes))
            region = opened(await self._talk.receive(timeout))
        except grpc.RpcError as error:
            raise _Refused(error, others_lay_idle=await self._forget()) from error
        except BaseException:
            await self._forget()
            raise
        self._pool.add(region)
        return region


class _Refused(Exception):
    """The server has ended the conversation."""

    def __init__(self, error: grpc.RpcError, *, others_lay_idle: bool) -> None:
        super().__init__()
        self.error = error
        self.others_lay_idle = others_lay_idle
