"""Ours: the service over gRPC and through shared memory; and limits: echoes of raw bytes, and the kernel alone."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.driver import ROOT, SCRIPTS, Driver
from benchmarks.peers.peer import ECHO, GRPC, KERNEL, OURS, SHARED_MEMORY, SOCKETS, Peer
from benchmarks.peers.servers import Server, Tree, free_port
from normserver import polling

# Scripts find the benchmarks they share with the others from wherever they run.
PATHS = {"PYTHONPATH": str(ROOT)}


def over_grpc(stack: ExitStack, folder: Path) -> list[Peer]:
    """The service on a port of 127.0.0.1.

    Raises:
        PeerFailed: it does not serve.
    """
    return [_service(stack, folder / "normstats", f"127.0.0.1:{free_port()}", over=GRPC)]


def through_memory(stack: ExitStack, folder: Path) -> list[Peer]:
    """The service on a socket of this machine, with arrays in shared memory.

    Raises:
        PeerFailed: it does not serve.
    """
    address = f"unix:{folder / 'normstats.sock'}"
    return [_service(stack, folder / "normstats shared", address, "--shared-memory", over=SHARED_MEMORY)]


def _service(stack: ExitStack, folder: Path, address: str, *flags: str, over: str) -> Peer:
    command = [sys.executable, "-m", "normserver", "--listen", address, "--http", "127.0.0.1:0", "--device", "cpu"]
    command += ["--store", f"sqlite:///{folder / 'normstats.db'}", "--log-format", "json", *flags]
    server = Server(command, address, folder)
    stack.callback(server.stop)
    server.wait()
    arguments = [address, *(["shared"] if over == SHARED_MEMORY else [])]
    driver = Driver(sys.executable, "call_normstats.py", *arguments, log=folder / "driver.log", environment=PATHS)
    stack.callback(driver.stop)
    return Peer(OURS, (over,), driver, server.tree)


def echo(stack: ExitStack, folder: Path) -> list[Peer]:
    """A server of raw bytes in Python: what the wire can do.

    Raises:
        PeerFailed: it does not serve.
    """
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "benchmarks.peers.echo", address]
    server = Server(command, address, folder / "echo", PATHS | polling.environment())
    stack.callback(server.stop)
    server.wait()
    driver = Driver(sys.executable, "call_echo.py", address, log=folder / "echo driver.log", environment=PATHS)
    stack.callback(driver.stop)
    return [Peer(ECHO, (GRPC,), driver, server.tree)]


def sockets(stack: ExitStack, folder: Path) -> list[Peer]:
    """The same bytes over plain TCP, in Python: what any wire could do here.

    Raises:
        PeerFailed: it does not serve.
    """
    address = f"127.0.0.1:{free_port()}"
    server = Server([sys.executable, SCRIPTS / "serve_sockets.py", address], address, folder / "sockets")
    stack.callback(server.stop)
    server.wait()
    driver = Driver(sys.executable, "call_sockets.py", address, log=folder / "sockets driver.log")
    stack.callback(driver.stop)
    return [Peer(SOCKETS, (GRPC,), driver, server.tree)]


def kernel(stack: ExitStack, folder: Path) -> list[Peer]:
    """The arithmetic where the array is: what shared memory can do. Its server is its driver."""
    driver = Driver(sys.executable, "call_kernel.py", log=folder / "kernel.log", environment=PATHS)
    stack.callback(driver.stop)
    return [Peer(KERNEL, (SHARED_MEMORY,), driver, Tree(driver.process.pid))]
