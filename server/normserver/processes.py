"""`serve --processes N`: starts N servers that share a port, watches over them, and stops them together.

They are spawned, each with an interpreter of its own: a process that has started gRPC must not be forked.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import FrameType

from normserver.config import Settings, split_address

log = logging.getLogger(__name__)

# One that ends sooner than this could not serve, and would not the next time.
_SETTLED_SECONDS = 5.0
_LOOK_SECONDS = 0.2
_PREFIX = "NORMSTATS_"


def supervise(settings: Settings) -> int:
    """Run the processes until SIGTERM or SIGINT; returns the exit code."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with ExitStack() as kept:
        host, port = split_address(settings.listen)
        if port == 0:
            port = kept.enter_context(_reserved(host)).getsockname()[1]
        settings = settings.model_copy(update={"listen": f"{settings.listen.rpartition(':')[0]}:{port}"})
        servers = [_Server(settings, index) for index in range(settings.processes)]
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

    def __init__(self, settings: Settings, index: int) -> None:
        self.index = index
        own = {
            "processes": 1,
            "share_port": True,
            "http": _counted_up(settings.http, index),
            "health": _counted_up(settings.health, index),
        }
        values = settings.model_copy(update=own).model_dump(mode="json", exclude={"config"}, exclude_none=True)
        others = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
        self._environment = others | {f"{_PREFIX}{name.upper()}": str(value) for name, value in values.items()}
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self._started = time.monotonic()
        self._process = subprocess.Popen([sys.executable, "-m", "normserver"], env=self._environment)

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._started

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
