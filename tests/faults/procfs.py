"""A process, as Linux sees it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.server_process import ServerProcess


class Process:
    """A server's process."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process is not None
        self.pid = server.process.pid
        self._folder = Path(f"/proc/{self.pid}")

    def cpu_seconds(self) -> float:
        """What it has used of the processors so far."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_bytes(self) -> int:
        """Its resident memory."""
        return self._status("VmRSS") * 1024

    @property
    def peak_bytes(self) -> int:
        """The most that this was since `forget_peak`."""
        return self._status("VmHWM") * 1024

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        (self._folder / "clear_refs").write_text("5")

    @property
    def threads(self) -> int:
        """How many it has."""
        return self._status("Threads")

    @property
    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(self._folder / "fd"))

    def _status(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise KeyError(name)
