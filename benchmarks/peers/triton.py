"""Triton Inference Server, the one in pytriton's wheel, with a model of its python backend and dynamic batching.

Twice: as it is installed, and as fast as we could make it by the environment of its server and client.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.driver import Driver
from benchmarks.peers.environments import python_with
from benchmarks.peers.peer import GRPC, SHARED_MEMORY, TRITON, TRITON_TUNED, Peer
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
# torch's threads would spin while others want the cores: with 1 MiB that took twice as long. Memory that is kept counts
# from some megabytes on.
TUNED = {"OMP_WAIT_POLICY": "passive"} | KEEPING_MEMORY
MODELS = Path(__file__).resolve().parent / "models" / "triton"


def start(stack: ExitStack, folder: Path) -> list[Peer]:
    """Both servers and their drivers.

    Raises:
        PeerFailed, OSError, subprocess.CalledProcessError: it cannot be installed or does not serve.
    """
    python = python_with("triton", *PACKAGES, interpreter=INTERPRETER)
    return [
        _started(stack, folder / "triton", python, TRITON, {}),
        _started(stack, folder / "triton-tuned", python, TRITON_TUNED, TUNED),
    ]


def _started(stack: ExitStack, folder: Path, python: Path, name: str, environment: dict[str, str]) -> Peer:
    folder.mkdir()
    packages = python.parent.parent / "lib" / f"python{VERSION}" / "site-packages"
    triton = packages / "pytriton" / "tritonserver"
    port = free_port()
    command: list[str | Path] = [
        triton / "bin" / "tritonserver",
        f"--model-repository={MODELS}",
        f"--backend-directory={_backends(triton, folder)}",
        # Two servers on one machine: each has shared memory of its own with its models.
        f"--backend-config=python,shm-region-prefix-name=normstats-{port}",
        "--disable-auto-complete-config",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        "--allow-http=false",
        "--allow-metrics=false",
        "--log-info=false",
    ]
    paths = {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    server = Server(command, f"127.0.0.1:{port}", folder, paths | environment)
    stack.callback(server.stop)
    server.wait()
    log = folder / "driver.log"
    driver = Driver(python, "call_triton.py", f"127.0.0.1:{port}", log=log, environment=environment)
    stack.callback(driver.stop)
    return Peer(name, (GRPC, SHARED_MEMORY), driver, server.tree)


def _backends(triton: Path, folder: Path) -> Path:
    """The python backend beside its stub for this version: the wheel has them apart."""
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for source in (triton / "backends" / "python", triton / "python_backend_stubs" / VERSION):
        for file in source.iterdir():
            (backend / file.name).symlink_to(file)
    return backend.parent
