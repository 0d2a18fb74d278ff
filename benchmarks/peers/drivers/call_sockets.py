"""Sends bytes over plain TCP and gets them back: what this machine's loopback gives to Python. Argument: its address.

Each caller has a connection of its own, sends as much as fits and receives into the array that it gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys

import numpy as np
import workload
from driving import drive

PART_BYTES = 1 << 20


def exchange(address, size):
    """A call that sends an array of so many bytes and gets it back."""
    x = workload.payload(size)
    data = memoryview(x).cast("B")
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)
    waiting = select.poll()

    def call():
        y = np.empty_like(x)
        into, sent, received = memoryview(y).cast("B"), 0, 0
        while received < size:
            before = sent + received
            with contextlib.suppress(BlockingIOError):
                if sent < size:
                    sent += connection.send(data[sent : sent + PART_BYTES])
            with contextlib.suppress(BlockingIOError):
                received += connection.recv_into(into[received:])
            if sent + received == before:
                waiting.register(connection, select.POLLIN | (select.POLLOUT if sent < size else 0))
                waiting.poll()
        return y

    return call


def verify(size, y):
    np.testing.assert_array_equal(y, workload.payload(size))


if __name__ == "__main__":
    asyncio.run(drive(lambda size, callers, _: [exchange(sys.argv[1], size) for _ in range(callers)], verify))
