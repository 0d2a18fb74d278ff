"""Triton Inference Server, the one in pytriton's wheel, with a model of its python backend and dynamic batching."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.driver import Driver
from benchmarks.peers.environments import python_with
from benchmarks.peers.peer import GRPC, SHARED_MEMORY, TRITON, Peer
from benchmarks.peers.servers import KEEPING_MEMORY, Server, free_port

PACKAGES = (
    "nvidia-pytriton==0.7.0",
    "tritonclient[grpc]==2.73.0",
    "grpcio==1.85.1",
    "numpy==1.26.4",
    "torch==2.13.0",
)
# Its backend's stub loads the system's libpython of this version; interpreters from elsewhere do not bring one.
INTERPRETER, VERSION = "/usr/bin/python3", "3.11"
# torch's threads would spin while others want the cores: with 1 MiB that took twice as long.
THREADS = {"OMP_WAIT_POLICY": "passive"}
MODELS = Path(__file__).resolve().parent / "models" / "triton"


def start(stack: ExitStack, folder: Path) -> list[Peer]:
    """The server and its driver.

    Raises:
        PeerFailed, OSError, subprocess.CalledProcessError: it cannot be installed or does not serve.
    """
    python = python_with("triton", *PACKAGES, interpreter=INTERPRETER)
    packages = python.parent.parent / "lib" / f"python{VERSION}" / "site-packages"
    triton = packages / "pytriton" / "tritonserver"
    port = free_port()
    command: list[str | Path] = [
        triton / "bin" / "tritonserver",
        f"--model-repository={MODELS}",
        f"--backend-directory={_backends(triton, folder)}",
        "--disable-auto-complete-config",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        "--allow-http=false",
        "--allow-metrics=false",
        "--log-info=false",
    ]
    paths = {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    server = Server(command, f"127.0.0.1:{port}", folder / "triton", paths | THREADS | KEEPING_MEMORY)
    stack.callback(server.stop)
    server.wait()
    log = folder / "triton driver.log"
    driver = Driver(python, "call_triton.py", f"127.0.0.1:{port}", log=log, environment=KEEPING_MEMORY)
    stack.callback(driver.stop)
    return [Peer(TRITON, (GRPC, SHARED_MEMORY), driver, server.tree)]


def _backends(triton: Path, folder: Path) -> Path:
    """The python backend beside its stub for this version: the wheel has them apart."""
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for source in (triton / "backends" / "python", triton / "python_backend_stubs" / VERSION):
        for file in source.iterdir():
            (backend / file.name).symlink_to(file)
    return backend.parent
