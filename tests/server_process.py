"""A real server, in a process of its own, stopped by its own process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 60.0


class ServerProcess:
    """`python -m normserver` on free ports of 127.0.0.1, or at a socket. `target`, `http` and, if it has that port,
    `health` are its addresses.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        store: str = "",
        port: int = 0,
        prefix: Sequence[str] = (),
        processes: int = 1,
        by_socket: bool = False,
    ) -> None:
        self.folder = folder
        self.prefix = prefix
        self.store = store or f"sqlite:///{folder / 'normstats.db'}"
        self.flags = (*flags, "--processes", str(processes)) if processes > 1 else flags
        self.processes = processes
        self.port = port
        # A socket's path has at most 107 characters: a folder of the tests' may be longer.
        self._socket = f"{tempfile.mkdtemp(prefix='normstats-')}/socket" if by_socket else ""
        self.target = self.http = self.health = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"server-{os.urandom(4).hex()}.log"

    def start(self) -> ServerProcess:
        """Start, and return once all its processes serve; on the same port as before, if it ran before."""
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "normserver",
            "--listen",
            f"unix:{self._socket}" if self._socket else f"127.0.0.1:{self.port}",
            "--http",
            "127.0.0.1:0",
        ]
        command += ["--store", self.store, "--log-format", "json", "--device", "cpu", *self.flags]
        with self._log.open("ab") as log:
            offset = log.tell()
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        serving = self._wait_for("serving", self.processes, offset)[0]
        self.target, self.http = serving["grpc"], f"http://{serving['http']}"
        self.health = serving.get("health", "")
        if not self._socket:
            self.port = int(self.target.rpartition(":")[2])
        return self

    def kill(self) -> None:
        """kill -9, now."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def stop(self) -> None:
        """Be gone, whatever the state."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._socket:
            shutil.rmtree(Path(self._socket).parent, ignore_errors=True)

    def log(self) -> str:
        """Everything it has logged."""
        return self._log.read_text(errors="replace")

    def _wait_for(self, event: str, times: int, offset: int) -> list[dict[str, Any]]:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with self._log.open("rb") as log:
                log.seek(offset)
                lines = log.read().decode(errors="replace").splitlines()
            logged = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
            found = [entry for entry in logged if entry.get("event") == event]
            if len(found) >= times:
                return found
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log()}")
            time.sleep(0.02)
        self.stop()
        raise TimeoutError(f"no {event!r} within {START_SECONDS} s: {self.log()}")
