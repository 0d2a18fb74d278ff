"""A TCP proxy that cuts connections, holds back what they carry, and is as slow as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

CUTS = ("before the request", "after the request", "before the reply")


# What a line is behind by so much it makes up for: waits are not that exact.
_SLACK_SECONDS = 0.01


class _Pace:
    """One way of a connection, which carries so much a second."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = time.monotonic()

    async def carry(self, size_bytes: int) -> None:
        """Wait until so much is through."""
        self._free_at = max(self._free_at, time.monotonic() - _SLACK_SECONDS) + size_bytes / self._bytes_per_second
        if (seconds := self._free_at - time.monotonic()) > 0:
            await asyncio.sleep(seconds)


class Proxy:
    """On a free port of 127.0.0.1, before a server. A context manager; `target` is its address.

    Of the pieces that a client sends, `cut_rate` have their connection cut: before the server gets them, after it,
    or when it answers. Both sides see a reset. Each way of a connection carries `bytes_per_second`, if that is given.
    """

    def __init__(
        self, upstream: str, *, cut_rate: float = 0.0, seed: int = 0, bytes_per_second: float | None = None
    ) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._cut_rate = cut_rate
        self._random = random.Random(seed)
        self._bytes_per_second = bytes_per_second
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()
        self.cuts: Counter[str] = Counter()
        self.target = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Cut every connection, now."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def hold(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def release(self) -> None:
        """What was held comes through."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._accepted, "127.0.0.1", 0))
        self.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._abort_all()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _pace(self) -> _Pace:
        return _Pace(self._bytes_per_second or math.inf)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._writers |= both
        doomed = asyncio.Event()
        ways = [
            asyncio.create_task(self._requests(reader, server_writer, doomed)),
            asyncio.create_task(self._replies(server_reader, writer, doomed)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for one in both:
                one.transport.abort()
            self._writers -= both

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            pace = self._pace()
            while data := await reader.read(2**16):
                await self._flowing.wait()
                await pace.carry(len(data))
                cut = self._random.choice(CUTS) if self._random.random() < self._cut_rate else None
                if cut is not None:
                    self.cuts[cut] += 1
                if cut == "before the request":
                    return
                writer.write(data)
                await writer.drain()
                if cut == "after the request":
                    return
                if cut == "before the reply":
                    doomed.set()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            pace = self._pace()
            while data := await reader.read(2**16):
                await self._flowing.wait()
                await pace.carry(len(data))
                if doomed.is_set():
                    return
                writer.write(data)
                await writer.drain()
