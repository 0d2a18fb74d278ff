"""Calls normstats. Arguments: its address, and "shared" if arrays are to go through shared memory."""

from __future__ import annotations

import asyncio
import sys

import workload
from driving import drive

import normstats

NAME = "layer"
SMALL_BYTES = 1 << 16


def connected(address, shared):
    """A client of the server there."""
    if shared:
        return normstats.aio.connect(address, shared_memory=True)
    return normstats.aio.connect(address)


def call_with(client, size, shared):
    """What each caller calls; what goes through shared memory was made there, as Triton's is."""
    x, there = workload.payload(size), None

    async def call():
        nonlocal there
        if shared and there is None:
            there = await client.empty(x.shape)
            there[:] = x
        return await client.normalize(there if shared else x, NAME, timeout=300)

    return call


def by_thread(client, size):
    """What one caller calls: the sync client has a thread less on its way."""
    x = workload.payload(size)
    return lambda: client.normalize(x, NAME)


async def main(address, shared):
    alone = normstats.connect(address)
    async with connected(address, shared) as client:
        parameters = {"weight": workload.WEIGHT, "bias": workload.BIAS, "eps": workload.EPS}
        await client.create(NAME, normstats.LayerNorm((workload.FEATURES,), **parameters))

        def prepare(size, callers, _shared_memory):
            if callers == 1 and size <= SMALL_BYTES:
                return [by_thread(alone, size)]
            return [call_with(client, size, shared)] * callers

        await drive(prepare, workload.verify)
    alone.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "shared" in sys.argv[2:]))
