"""Calls normstats. Arguments: its address, and "shared" if arrays are to go through shared memory."""

from __future__ import annotations

import asyncio
import sys

import workload
from driving import drive

import normstats

NAME = "layer"


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


async def main(address, shared):
    async with connected(address, shared) as client:
        parameters = {"weight": workload.WEIGHT, "bias": workload.BIAS, "eps": workload.EPS}
        await client.create(NAME, normstats.LayerNorm((workload.FEATURES,), **parameters))

        def prepare(size, callers, _shared_memory):
            return [call_with(client, size, shared)] * callers

        await drive(prepare, workload.verify)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "shared" in sys.argv[2:]))
