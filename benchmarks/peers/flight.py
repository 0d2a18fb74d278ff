"""Arrow Flight, whose server sends batches back as they are: no arithmetic."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.driver import SCRIPTS, Driver
from benchmarks.peers.environments import python_with
from benchmarks.peers.peer import FLIGHT, GRPC, Peer
from benchmarks.peers.servers import Server, free_port

PACKAGES = ("pyarrow==26.0.1", "numpy==2.4.6")


def start(stack: ExitStack, folder: Path) -> list[Peer]:
    """The server and its driver.

    Raises:
        PeerFailed, OSError, subprocess.CalledProcessError: it cannot be installed or does not serve.
    """
    python = python_with("flight", *PACKAGES)
    address = f"127.0.0.1:{free_port()}"
    server = Server([python, SCRIPTS / "serve_flight.py", address], address, folder / "flight")
    stack.callback(server.stop)
    server.wait()
    driver = Driver(python, "call_flight.py", address, log=folder / "flight driver.log")
    stack.callback(driver.stop)
    return [Peer(FLIGHT, (GRPC,), driver, server.tree)]
