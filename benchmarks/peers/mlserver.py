"""MLServer with a runtime of its own, called over gRPC with tensors of FP32, and with the same as opaque bytes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.driver import Driver
from benchmarks.peers.environments import python_with
from benchmarks.peers.peer import GRPC, MLSERVER, MLSERVER_BYTES, Peer
from benchmarks.peers.servers import Server, free_port

PACKAGES = ("mlserver==1.7.1", "tritonclient[grpc]==2.73.0", "grpcio==1.85.1", "numpy==2.4.6", "torch==2.13.0")
# The settings in it leave nothing but the work: no access log, no metrics, no process between server and model.
MODEL = Path(__file__).resolve().parent / "models" / "mlserver"


def start(stack: ExitStack, folder: Path) -> list[Peer]:
    """One server, and a driver for each type.

    Raises:
        PeerFailed, OSError, subprocess.CalledProcessError: it cannot be installed or does not serve.
    """
    python = python_with("mlserver", *PACKAGES)
    port = free_port()
    ports = {"MLSERVER_GRPC_PORT": str(port), "MLSERVER_HTTP_PORT": str(free_port())}
    address = f"127.0.0.1:{port}"
    command: list[str | Path] = [python.parent / "mlserver", "start", MODEL]
    server = Server(command, address, folder / "mlserver", ports)
    stack.callback(server.stop)
    server.wait()
    peers = []
    for name, datatype in ((MLSERVER, "FP32"), (MLSERVER_BYTES, "BYTES")):
        log = folder / f"{name}.log"
        driver = Driver(python, "call_mlserver.py", address, datatype, log=log)
        stack.callback(driver.stop)
        peers.append(Peer(name, (GRPC,), driver, server.tree))
    return peers
