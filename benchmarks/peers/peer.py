"""A peer that serves: what calls it, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.driver import Driver
from benchmarks.peers.servers import Tree

OURS, TRITON, TRITON_TUNED = "normstats", "Triton", "Triton, tuned"
MLSERVER, MLSERVER_BYTES = "MLServer", "MLServer, bytes"
FLIGHT, ECHO, SOCKETS, KERNEL = "Flight echo", "our echo", "plain TCP", "kernel alone"
NAMES = (OURS, TRITON, TRITON_TUNED, MLSERVER, MLSERVER_BYTES, FLIGHT, ECHO, SOCKETS, KERNEL)
GRPC, SHARED_MEMORY = "gRPC", "shared memory"


class Peer(NamedTuple):
    """One that can be measured."""

    name: str
    over: tuple[str, ...]
    driver: Driver
    tree: Tree


# Makes the peer's environment, starts its server and its drivers, and leaves it to the stack to stop them.
Start = Callable[[ExitStack, Path], list[Peer]]
