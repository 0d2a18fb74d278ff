"""How gRPC waits for its sockets, and what it logs: it decides when it is loaded. Import nothing of it before."""

from __future__ import annotations

import os
from importlib.metadata import version

# Its event engine hands every message from thread to thread: without it an echo took 92 us instead of 140, and a
# megabyte no longer. Later releases than these may have no other way.
_EXPERIMENTS, _RELEASES = "-event_engine_client,-event_engine_listener", ((1, 70), (1, 85))


def environment() -> dict[str, str]:
    """Variables by which the threads that wait for messages wait for their sockets themselves."""
    release = tuple(int(part) for part in version("grpcio").split(".")[:2])
    return {"GRPC_EXPERIMENTS": _EXPERIMENTS} if _RELEASES[0] <= release <= _RELEASES[1] else {}


def choose() -> None:
    """The same for this process, and no lines of gRPC's own on stderr, unless its environment says otherwise.

    The server says itself what goes wrong. gRPC's lines are no JSON, and callers can cause them: a failed handshake is
    one. GRPC_VERBOSITY=ERROR brings them back.
    """
    for name, value in (environment() | {"GRPC_VERBOSITY": "NONE"}).items():
        os.environ.setdefault(name, value)
