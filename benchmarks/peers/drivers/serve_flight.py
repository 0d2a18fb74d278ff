"""An Arrow Flight server that sends back the batches that it gets. Argument: its address."""

from __future__ import annotations

import sys

from pyarrow import flight


class Echo(flight.FlightServerBase):
    def do_exchange(self, context, descriptor, reader, writer):
        writer.begin(reader.schema)
        for chunk in reader:
            writer.write_batch(chunk.data)


if __name__ == "__main__":
    Echo(f"grpc://{sys.argv[1]}").serve()
