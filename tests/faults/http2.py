"""HTTP/2 frames as no gRPC client would send them (RFC 9113, RFC 7541), and what came back."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
_CANCEL = (8).to_bytes(4, "big")
_LARGEST_FRAME = 1 << 14


class Frame(NamedTuple):
    """What came back."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def grpc_status(self) -> int | None:
        """The status that trailers tell, if gRPC spelled it out, as it does on its first stream of a connection."""
        found = re.search(rb"grpc-status[\x01\x02](\d+)", self.payload) if self.kind == HEADERS else None
        return None if found is None else int(found[1])


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def opening(stream: int, method: str, **metadata: str) -> bytes:
    """The frame that opens a call: headers as literals, none of which is to be remembered."""
    fields = b"\x83\x86"  # :method POST, :scheme http
    fields += b"\x04" + _string(method) + b"\x01" + _string("localhost")  # :path, :authority
    for name, value in ({"content-type": "application/grpc", "te": "trailers"} | metadata).items():
        fields += b"\x00" + _string(name.replace("_", "-")) + _string(value)
    return frame(HEADERS, END_HEADERS, stream, fields)


def cancelling(stream: int) -> bytes:
    """The frame that takes a call back."""
    return frame(RST_STREAM, 0, stream, _CANCEL)


class Connection:
    """A connection that says what it is told to say. A context manager."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._received = b""
        self._windows: dict[int, int] = {}
        self.is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def greet(self) -> Self:
        """Begin as a client does."""
        self.send(PREFACE + frame(SETTINGS, 0, 0))
        return self

    def send(self, data: bytes) -> bool:
        """Send; whether the other end still takes it."""
        try:
            self._socket.sendall(data)
        except OSError:
            self.is_open = False
        return self.is_open

    def call(self, method: str, message: bytes, *, compressed: bool, timeout: float) -> Frame | None:
        """Make a unary call on stream 1, by the rules of flow control; returns its trailers, or its reset.

        None if the connection ended, or a message came instead.
        """
        self._windows = {0: (1 << 16) - 1, 1: (1 << 16) - 1}
        self.greet()
        encoding = {"grpc_encoding": "gzip"} if compressed else {}
        self.send(opening(1, method, **encoding))
        rest = bytes((compressed,)) + len(message).to_bytes(4, "big") + message
        end = time.monotonic() + timeout
        while self.is_open and time.monotonic() < end:
            room = min(_LARGEST_FRAME, *self._windows.values())
            if rest and room:
                part, rest = rest[:room], rest[room:]
                self._windows = {stream: left - len(part) for stream, left in self._windows.items()}
                self.send(frame(DATA, 0 if rest else END_STREAM, 1, part))
            for one in self.frames(0.0 if rest and room else 0.1):
                if one.kind == WINDOW_UPDATE:
                    self._windows[one.stream] += int.from_bytes(one.payload, "big")
                if one.stream == 1 and one.kind == DATA:
                    return None
                if one.stream == 1 and (one.kind == RST_STREAM or one.flags & END_STREAM):
                    return one
        return None

    def frames(self, timeout: float = 0.0) -> Iterator[Frame]:
        """What has come, if need be after a wait. What wants an acknowledgement gets it."""
        while self.is_open and select.select([self._socket], [], [], timeout)[0]:
            timeout = 0.0
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            self.is_open = bool(data)
            self._received += data
        while len(self._received) >= 9:
            size = 9 + int.from_bytes(self._received[:3], "big")
            if len(self._received) < size:
                return
            taken, self._received = self._received[:size], self._received[size:]
            one = Frame(taken[3], taken[4], int.from_bytes(taken[5:9], "big"), taken[9:])
            if one.kind in (SETTINGS, PING) and not one.flags & ACK:
                self._settle(one)
                self.send(frame(one.kind, ACK, 0, one.payload if one.kind == PING else b""))
            yield one

    def _settle(self, one: Frame) -> None:
        """Heed the window that a stream begins with (setting 4)."""
        for at in range(0, len(one.payload) if one.kind == SETTINGS else 0, 6):
            if int.from_bytes(one.payload[at : at + 2], "big") == 4 and 1 in self._windows:
                self._windows[1] += int.from_bytes(one.payload[at + 2 : at + 6], "big") - ((1 << 16) - 1)


def _string(text: str) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()
