"""`serve --processes N`: starts N servers that share a port, watches over them, and stops them together.

They are spawned, each with an interpreter of its own: a process that has started gRPC must not be forked.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

from normserver.config import Settings, split_address

log = logging.getLogger(__name__)

# One that ends sooner than this could not serve, and would not the next time.
_SETTLED_SECONDS = 5.0
_LOOK_SECONDS = 0.2


def supervise(settings: Settings, arguments: Sequence[str]) -> int:
    """Run the processes until SIGTERM or SIGINT, and pass SIGHUP on to them; returns the exit code.

    `arguments` are the command line's, from which each process reads its settings, and reads them again on SIGHUP.
    """
    stopping = threading.Event()
    servers: list[_Server] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    def reload(_number: int, _frame: FrameType | None) -> None:
        for server in servers:
            server.reload()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, reload)
    with ExitStack() as kept:
        host, port = split_address(settings.listen)
        if port == 0:
            port = kept.enter_context(_reserved(host)).getsockname()[1]
        settings = settings.model_copy(update={"listen": f"{settings.listen.rpartition(':')[0]}:{port}"})
        servers += [_Server(settings, arguments, index) for index in range(settings.processes)]
        code = _watch_over(servers, stopping)
        for server in servers:
            server.terminate()
        return max([code, *(server.wait() for server in servers)])


def _watch_over(servers: list[_Server], stopping: threading.Event) -> int:
    while not stopping.wait(_LOOK_SECONDS):
        for server in servers:
            if (code := server.code()) is None:
                continue
            log.error("process ended", extra={"process": server.index, "code": code})
            if server.seconds() < _SETTLED_SECONDS:
                return code or 1
            server.start()
    return 0


class _Server:
    """One of the processes. Its pages, and its health, are at the port after that of the one before it."""

    def __init__(self, settings: Settings, arguments: Sequence[str], index: int) -> None:
        self.index = index
        # The last of two flags counts.
        own = ["--processes", "1", "--share-port", "--listen", settings.listen]
        own += ["--http", _counted_up(settings.http, index), "--health", _counted_up(settings.health, index)]
        self._command = [sys.executable, "-m", "normserver", *arguments, *own]
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self._started = time.monotonic()
        self._process = subprocess.Popen(self._command)

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._started

    def reload(self) -> None:
        """Have it reload what may change while it runs."""
        self._process.send_signal(signal.SIGHUP)

    def terminate(self) -> None:
        """Tell it to stop."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait until it has stopped; returns its exit code."""
        return abs(self._process.wait())


def _reserved(host: str) -> socket.socket:
    """A free port that the processes will share, kept from others by a socket that takes no connections."""
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((host, 0))
    return reserved


def _counted_up(address: str, index: int) -> str:
    if not address:
        return address
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + index if int(port) else 0}"
