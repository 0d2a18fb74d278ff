"""Exchanges batches of up to 1 MiB with an Arrow Flight server that echoes them. Argument: its address.

Each caller has a connection of its own and keeps its exchange open. A batch is sent when the one before is back: with
two to eight on their way, sent by a second thread, 16 MiB took up to twice as long: both threads want the interpreter.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pyarrow as pa
import workload
from driving import drive
from pyarrow import flight

BATCH_BYTES = 1 << 20


def exchange(address, size):
    """A call that sends an array of so many bytes and gets it back."""
    column = pa.array(workload.payload(size).ravel())
    batches = pa.table([column], names=["x"]).to_batches(max_chunksize=BATCH_BYTES // 4)
    client = flight.FlightClient(f"grpc://{address}")
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("echo"))
    writer.begin(batches[0].schema)

    def call():
        echoed = []
        for batch in batches:
            writer.write_batch(batch)
            echoed.append(reader.read_chunk().data)
        return echoed

    return call


def verify(size, echoed):
    np.testing.assert_array_equal(pa.Table.from_batches(echoed)["x"], workload.payload(size).ravel())


if __name__ == "__main__":
    asyncio.run(drive(lambda size, callers, _: [exchange(sys.argv[1], size) for _ in range(callers)], verify))
