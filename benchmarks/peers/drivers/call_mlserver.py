"""Calls MLServer by stubs of the V2 protocol. Arguments: its address, and FP32 or BYTES, the type of the tensor.

Tensors are raw contents, which were up to 1.8 times as fast as typed ones. One caller calls a sync stub, many are
tasks, whichever was faster. A tensor of FP32 becomes a list of Python floats in the server. An element of BYTES stays
as it is: that is much faster, but then nobody but the two ends knows what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys

import grpc
import numpy as np
import workload
from driving import drive
from tritonclient.grpc import service_pb2, service_pb2_grpc

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ATTEMPTS = 300
HEAD = struct.Struct("<I")  # goes before each element of BYTES: its length


def request_of(x, datatype):
    request = service_pb2.ModelInferRequest(model_name="layer")
    opaque = datatype == "BYTES"
    request.inputs.add(name="x", datatype=datatype, shape=[1] if opaque else x.shape)
    request.raw_input_contents.append((HEAD.pack(x.nbytes) if opaque else b"") + x.tobytes())
    return request


def array_of(reply, datatype):
    offset = HEAD.size if datatype == "BYTES" else 0
    return np.frombuffer(reply.raw_output_contents[0], np.float32, offset=offset).reshape(-1, workload.FEATURES)


def by_thread(stub, size, datatype):
    x = workload.payload(size)
    return lambda: array_of(stub.ModelInfer(request_of(x, datatype)), datatype)


def by_task(stub, size, datatype):
    x = workload.payload(size)

    async def call():
        return array_of(await stub.ModelInfer(request_of(x, datatype)), datatype)

    return call


async def main(address, datatype):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address, options=UNLIMITED))
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        other = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await loaded(other)

        def prepare(size, callers, _shared_memory):
            if callers == 1:
                return [by_thread(stub, size, datatype)]
            return [by_task(other, size, datatype)] * callers

        await drive(prepare, workload.verify)


async def loaded(stub):
    """Until the model is there: the server listens before."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(grpc.aio.AioRpcError):
            if (await stub.ModelReady(service_pb2.ModelReadyRequest(name="layer"))).ready:
                return
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
