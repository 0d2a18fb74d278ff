"""Calls the echo of raw bytes, in the messages that ours would go in. Argument: its address."""

from __future__ import annotations

import asyncio
import sys

import grpc
from driving import drive

from benchmarks.peers import echo
from benchmarks.wire import echo_of


async def main(address):
    async with grpc.aio.insecure_channel(address, options=echo.UNLIMITED) as channel:

        def prepare(size, callers, _shared_memory):
            return echo_of(channel, size, callers)

        await drive(prepare, lambda _size, _answer: None)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
