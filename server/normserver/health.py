"""grpc.health.v1 on a port of its own, for probes: in plaintext, on threads that nothing else waits for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from normserver import addresses

# A probe is short; who watches takes no thread.
_THREADS = 2
_MOST_CALLS = 64
# Connections without a call are closed after so long.
_IDLE_MILLISECONDS = 60_000


class HealthServer:
    """Serves health, and nothing else."""

    def __init__(self, address: str) -> None:
        """Bind HOST:PORT; port 0 picks a free one.

        Raises:
            OSError: the address cannot be bound.
        """
        self._servicer = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="health"),
            maximum_concurrent_rpcs=_MOST_CALLS,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 1024),
                ("grpc.server_handshake_timeout_ms", _IDLE_MILLISECONDS),
                ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        with addresses.binding("health", address):
            port = self._server.add_insecure_port(address)
        self.address = f"{address.rpartition(':')[0]}:{port}"

    def start(self) -> None:
        """Serve from now on."""
        self._server.start()

    def tell(self, service: str, *, serving: bool) -> None:
        """Whether a service serves, from now on."""
        now = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        self._servicer.set(service, now)

    def stop(self) -> None:
        """Stop."""
        self._server.stop(0).wait()
