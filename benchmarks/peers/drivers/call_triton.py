"""Calls Triton Inference Server with its own client, over gRPC or through system shared memory. Argument: its address.

Whichever of its clients was faster is called: the sync one by one caller up to 1 MiB, with some 1.1 times the calls of
the asyncio one, which otherwise had up to 1.7 times as many as the sync one with threads.
"""

from __future__ import annotations

import asyncio
import os
import sys

import numpy as np
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as asynchronous
import workload
from driving import drive
from tritonclient.utils import shared_memory as regions

MODEL = "layer"
SMALL_BYTES = 1 << 20


def inputs_of(x):
    """An array as the client takes it."""
    given = blocking.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return [given]


def by_thread(client, size):
    x = workload.payload(size)
    return lambda: client.infer(MODEL, inputs_of(x)).as_numpy("y")


def by_task(client, size):
    x = workload.payload(size)

    async def call():
        return (await client.infer(MODEL, inputs_of(x))).as_numpy("y")

    return call


def through_memory(client, size, made):
    """A call whose input is in one region, and whose output comes in another."""
    x = workload.payload(size)
    names = [f"{kind}-{size}-{os.getpid()}" for kind in ("x", "y")]
    for name in names:
        made.append(regions.create_shared_memory_region(name, f"/{name}", size))
        client.register_system_shared_memory(name, f"/{name}", size)
    regions.set_shared_memory_region(made[-2], [x])
    given, wanted = blocking.InferInput("x", list(x.shape), "FP32"), blocking.InferRequestedOutput("y")
    given.set_shared_memory(names[0], size)
    wanted.set_shared_memory(names[1], size)
    y = regions.get_contents_as_numpy(made[-1], np.float32, x.shape)

    def call():
        client.infer(MODEL, [given], outputs=[wanted])
        return y

    return call


async def main(address):
    made = []
    client = blocking.InferenceServerClient(address)
    async with asynchronous.InferenceServerClient(address) as other:

        def prepare(size, callers, shared_memory):
            if shared_memory:
                return [through_memory(client, size, made) for _ in range(callers)]
            if callers == 1 and size <= SMALL_BYTES:
                return [by_thread(client, size)]
            return [by_task(other, size)] * callers

        await drive(prepare, workload.verify)
    for region in made:
        regions.destroy_shared_memory_region(region)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
