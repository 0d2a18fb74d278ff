"""The limit of a wire: a grpc.aio server that sends back the bytes it gets. Prints its port.

Its address may be given; by default it is a free port of 127.0.0.1.

What it holds is settled as the server's own memory is, so that what is compared is the work.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from normserver import process

SERVICE = "normstats.benchmarks.Echo"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def unary(request: bytes, _context: Any) -> bytes:
    """One message."""
    return request


async def stream(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    """Message after message."""
    async for request in requests:
        yield request


async def serve(address: str) -> None:
    """Until killed."""
    server = grpc.aio.server(options=UNLIMITED)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(address)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    process.keep_memory()
    process.settle()
    asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0"))
