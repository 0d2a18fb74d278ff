"""What calls a peer: a script in the peer's own environment, told over stdin what to do; see drivers/driving.py."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.servers import PeerFailed, last_line
from normserver import polling

SCRIPTS = Path(__file__).resolve().parent / "drivers"
ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 300.0


class Workload(NamedTuple):
    """Tensors of so many bytes, sent by so many callers at a time."""

    size: int
    callers: int
    shared_memory: bool


class Done(NamedTuple):
    """How often they called, and how long that took."""

    calls: int
    seconds: float


class Driver:
    """One such script, from its start to its end."""

    def __init__(
        self,
        python: str | Path,
        script: str,
        *arguments: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [str(python), str(SCRIPTS / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=log.parent,
                # All are Python clients of gRPC, and all are a quarter faster with it.
                env=os.environ | polling.environment() | dict(environment or {}),
                start_new_session=True,
            )

    def run(self, workload: Workload, seconds: float) -> Done:
        """Call for so long; the first time, see that the answer is right.

        Raises:
            PeerFailed: it is not, a call failed, or there is none within ANSWER_SECONDS.
        """
        size, callers, shared_memory = workload
        command = {"bytes": size, "callers": callers, "seconds": seconds, "shared_memory": shared_memory}
        answer = self._ask(json.dumps(command))
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return Done(answer["calls"], answer["seconds"])

    def stop(self) -> None:
        """Let it end by itself, which releases what it holds, or end it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        overdue = threading.Timer(ANSWER_SECONDS, self.process.kill)
        overdue.start()
        try:
            print(command, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            overdue.cancel()
        return dict(json.loads(answer)) if answer else {"error": f"its driver ended: {last_line(self._log)}"}
