"""Connections of the HTTP port: how many there may be, how long each may take, and which one makes room for another.

uvicorn bounds neither their number nor the time that headers take. Connections are accepted here, before TLS, and each
is handed to uvicorn's protocol when its first byte has arrived: a silent one costs a descriptor, and no buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio import sslproto
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple, cast

import h11
import prometheus_client

log = logging.getLogger(__name__)

# asyncio allocates this for each TLS connection before its handshake: 256 KiB by default. A record of TLS has so much.
sslproto.SSLProtocol.max_size = 16 << 10

_SWEEP_SECONDS = 0.5
_LOG_SECONDS = 5.0
# How long accepting pauses when the process has no descriptor left.
_PAUSE_SECONDS = 1.0
_BACKLOG = 2048
# New connections that are accepted before others have a turn.
_ACCEPTED_AT_ONCE = 64
# h11 looks at the size of headers between two pieces alone.
_PIECE_BYTES = 16 << 10
# A response whose client reads less than this in the time that a request may take is given up.
_LEAST_READ_BYTES = 64 << 10
_TLS_SHUTDOWN_SECONDS = 2.0


class Limits(NamedTuple):
    """What connections may take."""

    max_connections: int
    max_per_address: int
    request_seconds: float
    """From a connection's or a request's beginning to the end of its headers."""
    idle_seconds: float
    """Between two requests."""


class Connections:
    """The connections of one listening socket. Lives on the event loop that serves them."""

    def __init__(
        self,
        listener: socket.socket,
        limits: Limits,
        tls: ssl.SSLContext | None,
        rejected: prometheus_client.Counter,
    ) -> None:
        """`rejected` counts connections that were closed before their time, by reason."""
        self.limits = limits
        self.tls = tls
        self._listener = listener
        self._rejected = rejected
        self._unlogged: Counter[str] = Counter()
        self._logged_at = float("-inf")
        # In the order in which they came.
        self._all: dict[tuple[str, int], Connection] = {}
        self._by_network: defaultdict[bytes, dict[Connection, None]] = defaultdict(dict)
        self._sweeping: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._all)

    def start(self, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Accept connections from now on; each that sends something gets a protocol."""
        self.loop = asyncio.get_running_loop()
        self.make_protocol = make_protocol
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._sweeping = self.loop.create_task(self._sweep(), name="http connections")
        self._listen()

    def find(self, client: tuple[str, int] | None) -> Connection | None:
        """The connection of a client's address; None if it is gone."""
        return None if client is None else self._all.get(client)

    def close(self) -> None:
        """Accept no more, and close those on which nothing was asked."""
        assert self._sweeping is not None, "close comes after start"
        self.loop.remove_reader(self._listener)
        self._sweeping.cancel()
        for connection in [one for one in self._all.values() if not one.is_open]:
            connection.abort()

    async def wait_closed(self) -> None:
        """As a server of asyncio's has it; those that are open are uvicorn's to end."""

    def reject(self, reason: str) -> None:
        """Count a connection that is closed before its time, and log some lines of that."""
        self._rejected.labels(reason).inc()
        self._unlogged[reason] += 1
        self._log()

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        if self._all.get(connection.client) is connection:  # the address may be another's by now
            del self._all[connection.client]
        of_network = self._by_network[connection.network]
        of_network.pop(connection, None)
        if not of_network:
            del self._by_network[connection.network]

    def _listen(self) -> None:
        if self._sweeping is not None and not self._sweeping.cancelled():
            self.loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left, or no memory for one
                self.loop.remove_reader(self._listener)
                self.loop.call_later(_PAUSE_SECONDS, self._listen)
                self.reject("descriptors")
                return
            self._admit(accepted, address)

    def _admit(self, accepted: socket.socket, address: tuple[str, int]) -> None:
        accepted.setblocking(False)
        connection = Connection(self, accepted, address)
        same = self._by_network[connection.network]
        if not (
            self._make_room(list(same), self.limits.max_per_address, "address_limit")
            and self._make_room(list(self._all.values()), self.limits.max_connections, "connection_limit")
        ):
            accepted.close()
            self.forget(connection)
            return
        self._all[connection.client] = connection
        self._by_network[connection.network][connection] = None
        connection.wait_for_bytes()

    def _make_room(self, connections: list[Connection], limit: int, reason: str) -> bool:
        """Whether there is room for one more, if need be in the place of another.

        That is the oldest on which no caller was recognized, or else the one that is idle longest: connections that
        somebody holds open keep nobody out who has something to ask. Those on which health was answered are no better
        than others: with them alone all room but one place could be taken.
        """
        if len(connections) < limit:
            return True
        self.reject(reason)
        idle = (one for one in connections if not one.busy)
        victim = next((one for one in connections if not one.recognized), None) or min(
            idle, key=lambda one: one.deadline, default=None
        )
        if victim is None:
            return False
        victim.abort()
        return True

    async def _sweep(self) -> None:
        """Close what has taken too long."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self.loop.time()
            for connection in [one for one in self._all.values() if one.deadline <= now]:
                connection.time_is_over(now)
            self._log()

    def _log(self) -> None:
        now = self.loop.time()
        if self._unlogged and now - self._logged_at >= _LOG_SECONDS:
            log.warning("HTTP connections closed", extra={**self._unlogged, "open": len(self._all)})
            self._unlogged.clear()
            self._logged_at = now


class Connection(asyncio.Protocol):
    """One connection: before its first byte a socket, then what stands between a transport and uvicorn's protocol."""

    def __init__(self, owner: Connections, accepted: socket.socket, address: tuple[str, int]) -> None:
        self.client = address[0], address[1]
        self.network = _network(address[0])
        self.recognized = False
        """Whether a caller was recognized by a request on it."""
        self.deadline = owner.loop.time() + owner.limits.request_seconds
        self._owner = owner
        self._socket = accepted
        self._opening: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._requests = 0
        self._served = self._receiving = self._aborted = False
        self._unread_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._requests > 0

    @property
    def is_open(self) -> bool:
        """Whether a protocol serves it."""
        return self._transport is not None

    def wait_for_bytes(self) -> None:
        """Do nothing until the client sends something."""
        self._owner.loop.add_reader(self._socket, self._open)

    def begin(self) -> None:
        """The headers of a request are complete."""
        self._requests += 1
        self._receiving = False
        if not self._unread_bytes:
            self.deadline = float("inf")

    def end(self) -> None:
        """A request is answered: the next one may take its time to come."""
        self._requests -= 1
        self._served = True
        if not self._requests and not self._unread_bytes:
            self.deadline = self._owner.loop.time() + self._owner.limits.idle_seconds

    def time_is_over(self, now: float) -> None:
        """Close it, unless its client is still reading a response."""
        transport, seconds = self._transport, self._owner.limits.request_seconds
        if transport is None:
            reason = "request_timeout"
        elif self._unread_bytes:
            unread, self._unread_bytes = self._unread_bytes, transport.get_write_buffer_size()
            if self._unread_bytes <= unread - _LEAST_READ_BYTES:
                self.deadline = now + seconds
                return
            reason = "slow_reader"
        elif transport.is_closing():  # the client does not read the last bytes
            reason = "slow_reader"
        elif self._served and not self._receiving:  # idle: an orderly close
            self.deadline = now + seconds
            transport.close()
            return
        else:
            reason = "request_timeout"
        self._owner.reject(reason)
        self.abort()

    def abort(self) -> None:
        """Close it now, in any state."""
        self._aborted = True
        self._owner.forget(self)
        if self._transport is not None:
            self._transport.abort()
        elif self._opening is not None:  # asyncio owns the socket now, sees its end and closes it
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._owner.loop.remove_reader(self._socket)
            self._socket.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is established, where there is any."""
        self._transport = cast("asyncio.Transport", transport)
        if self._aborted:
            self._transport.abort()
        self._protocol = self._owner.make_protocol()
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        assert self._transport is not None, "data come after the connection"
        if not self._receiving and not self._requests:
            self._receiving = True
            self.deadline = min(self.deadline, self._owner.loop.time() + self._owner.limits.request_seconds)
        for start in range(0, len(data), _PIECE_BYTES):
            if self._transport.is_closing():
                return
            try:
                self._protocol.data_received(data[start : start + _PIECE_BYTES])
            except h11.ProtocolError:  # a malformed request during a response: no place for a 400
                self.abort()

    def eof_received(self) -> None:
        """The client sends no more."""
        self._protocol.eof_received()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        assert self._transport is not None, "data are sent after the connection"
        self._unread_bytes = self._transport.get_write_buffer_size()
        self.deadline = self._owner.loop.time() + self._owner.limits.request_seconds
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has read."""
        self._unread_bytes = 0
        self.deadline = float("inf")
        if not self._requests:
            self.deadline = self._owner.loop.time() + self._owner.limits.idle_seconds
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._owner.forget(self)
        self._protocol.connection_lost(exc)

    def _open(self) -> None:
        """The first byte is there, or the end."""
        self._owner.loop.remove_reader(self._socket)
        try:
            if not self._socket.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
        except OSError:
            self._owner.forget(self)
            self._socket.close()
            return
        self._opening = self._owner.loop.create_task(self._make())

    async def _make(self) -> None:
        tls, loop = self._owner.tls, self._owner.loop
        try:
            if tls is None:
                await loop.connect_accepted_socket(lambda: self, self._socket)
            else:
                await loop.connect_accepted_socket(
                    lambda: self,
                    self._socket,
                    ssl=tls,
                    ssl_handshake_timeout=self._owner.limits.request_seconds,
                    ssl_shutdown_timeout=_TLS_SHUTDOWN_SECONDS,
                )
        except OSError as error:  # it spoke no TLS, or closed the connection; asyncio closes the socket
            # asyncio's frames refer to the error that refers to them, and to 90 KiB: 136 MiB after 1,500 handshakes.
            error.__traceback__ = None
            if not self._aborted:
                self._owner.forget(self)
                self._owner.reject("tls_handshake")


def _network(host: str) -> bytes:
    """Whom an address is counted for: an IPv4 address, or the 2^64 addresses of IPv6 that one site has."""
    host = host.partition("%")[0]
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    mapped = packed.startswith(b"\0" * 10 + b"\xff\xff")
    return packed[12:] if mapped else packed[:8]
