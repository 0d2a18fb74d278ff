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
    x = workload.payload(size)
    client = flight.FlightClient(f"grpc://{address}")
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("echo"))
    writer.begin(batches_of(x)[0].schema)

    def call():
        y = np.empty(x.size, x.dtype)
        place = 0
        for batch in batches_of(x):
            writer.write_batch(batch)
            echoed = reader.read_chunk().data.column(0).to_numpy()
            y[place : place + len(echoed)] = echoed
            place += len(echoed)
        return y.reshape(x.shape)

    return call


def batches_of(x):
    """An array in batches that share its memory."""
    return pa.table([pa.array(x.ravel())], names=["x"]).to_batches(max_chunksize=BATCH_BYTES // 4)


def verify(size, y):
    np.testing.assert_array_equal(y, workload.payload(size))


if __name__ == "__main__":
    asyncio.run(drive(lambda size, callers, _: [exchange(sys.argv[1], size) for _ in range(callers)], verify))
