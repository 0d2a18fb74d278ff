"""A server that sends back the bytes it gets, over plain TCP: no messages, no arithmetic. Argument: its address."""

from __future__ import annotations

import socket
import sys
import threading

BUFFER_BYTES = 1 << 20


def echo(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while received := connection.recv_into(buffer):
        connection.sendall(buffer[:received])


def serve(address):
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port)), backlog=64) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=echo, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    serve(sys.argv[1])
