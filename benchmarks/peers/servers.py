"""A peer's server: a process and those that it starts, watched and stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.wire import Process

START_SECONDS = 120.0
STOP_SECONDS = 20.0
# glibc keeps freed memory, as ours has it do for itself: up to 2.7 times as fast with large tensors, where it matters.
KEEPING_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


class PeerFailed(RuntimeError):
    """A peer that does not start, does not answer, or answers what is wrong."""


class Tree:
    """The processes of one session, as Linux sees them: its leader and whatever that started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_seconds(self) -> float:
        """What they have used of the processors so far."""
        return sum(process.cpu_seconds() for process in self._processes())

    def forget_peak(self) -> None:
        """Measure the peak of their memory from here on."""
        for process in self._processes():
            process.forget_peak()

    def peak_bytes(self) -> int:
        """The sum of their peaks. Memory that several share counts for each of them."""
        return sum(process.memory_bytes("VmHWM") for process in self._processes())

    def _processes(self) -> list[Process]:
        every = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [Process(pid) for pid in every if _session_of(pid) == self.pid]


class Server:
    """A server in a session of its own, and what it said."""

    def __init__(
        self, command: Sequence[str | Path], address: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | dict(environment or {}),
                start_new_session=True,
            )
        self.tree = Tree(self._process.pid)
        self._address = address

    def wait(self) -> None:
        """Until its address takes connections.

        Raises:
            PeerFailed: it ended, or does not listen within START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while not listens(self._address):
            if self._process.poll() is not None:
                raise PeerFailed(f"its server ended with {self._process.returncode}: {last_line(self._log)}")
            if time.monotonic() > deadline:
                raise PeerFailed(f"its server does not listen after {START_SECONDS:.0f} s: {last_line(self._log)}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Be gone, with all that it started."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def last_line(log: Path) -> str:
    """What was said last."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, for servers that cannot choose one and say which."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def listens(address: str) -> bool:
    """Whether somebody takes connections at HOST:PORT or unix:PATH."""
    path = address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_UNIX if path != address else socket.AF_INET) as caller:
        return caller.connect_ex(path if path != address else (host, int(port))) == 0


def _session_of(pid: int) -> int:
    """0 if it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
