"""The systemd unit, run as it stands but for its folders, with the certificate that the README's five commands make."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import normstats
from tests.certificates import Authority
from tests.deploy.kernels import kernels
from tests.deploy.manifests import DEPLOY
from tests.deploy.tools import tool

FOLDER = DEPLOY / "systemd"
README = (FOLDER / "README.md").read_text()
NORMSTATS = Path(sys.executable).with_name("normstats")
START_SECONDS = 60


class Machine(NamedTuple):
    """A unit that runs: its process, its settings by name, where it listens, and what clients are given."""

    process: subprocess.Popen[bytes]
    unit: dict[str, list[str]]
    target: str
    authority: Path
    token: str
    root: Path


def unit_text(root: Path) -> str:
    """The unit with its folders below `root`, and the program of this environment."""
    text = (FOLDER / "normstats.service").read_text().replace("/opt/normstats/bin/normstats", str(NORMSTATS))
    return re.sub(r"/(etc|var/lib|var/cache)/normstats", rf"{root}\g<0>", text)


def settings(text: str) -> dict[str, list[str]]:
    """The values of a unit, by name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def recipe(root: Path) -> None:
    """What the README says to type for TLS and tokens, below `root`."""
    (commands,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(re.findall(r"^(openssl|printf)", commands, re.MULTILINE)) == 5
    made = subprocess.run(["sh", "-euc", commands], cwd=root, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    tool("openssl")
    etc, unit = tmp_path / "etc/normstats", settings(unit_text(tmp_path))
    (configured,) = unit["ExecStart"]
    for folder in (etc, tmp_path / "var/lib/normstats", tmp_path / "var/cache/normstats"):
        folder.mkdir(parents=True)
    kernels(tmp_path / "var/cache/normstats")
    recipe(tmp_path)
    (line,) = re.findall(r"^normstats (token new .*)$", README, re.MULTILINE)
    told = subprocess.run([NORMSTATS, "--json", *shlex.split(line)], cwd=tmp_path, capture_output=True, check=True)
    token = json.loads(told.stdout)["token"]
    for name in re.findall(r"install --mode 640 --group normstats (.+) /etc/normstats$", README, re.MULTILINE):
        for file in name.split():
            shutil.copy(tmp_path / file, etc)
    text = (FOLDER / "normstats.toml").read_text().replace("/etc/", f"{tmp_path}/etc/")
    text = text.replace("sqlite:////var", f"sqlite:///{tmp_path}/var")
    (etc / "normstats.toml").write_text(re.sub(r":(50051|9464)\"", ':0"', text))
    (variable,) = unit["Environment"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            shlex.split(configured),
            cwd=unit["WorkingDirectory"][0],
            env=dict(os.environ) | dict([variable.split("=", 1)]),
            umask=int(unit["UMask"][0], 8),
            stderr=file,
        )
    try:
        port = _serving(process, log)
        yield Machine(process, unit, f"localhost:{port}", tmp_path / "ca.crt", token, tmp_path)
    finally:
        process.kill()
        process.wait()


def _serving(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.endswith("}") and json.loads(line)["event"] == "serving":
                return str(json.loads(line)["grpc"]).rpartition(":")[2]
        time.sleep(0.05)
    pytest.fail(f"it does not serve: {log.read_text()}")


def test_it_serves_over_tls_and_keeps_what_it_has_in_its_folders(machine: Machine) -> None:
    with normstats.connect(machine.target, tls=str(machine.authority), token=machine.token) as client:
        client.create("robot/obs", normstats.Standardize(2)).update(np.ones((3, 2)))
        assert client.get("robot/obs").stats().count == 3
    port = int(machine.target.rpartition(":")[2])
    stranger = ssl.create_default_context(cafile=Authority(machine.root, "stranger").path)
    with socket.create_connection(("localhost", port)) as raw, pytest.raises(ssl.SSLCertVerificationError):
        stranger.wrap_socket(raw, server_hostname="localhost")
    machine.process.send_signal(signal.SIGTERM)
    assert machine.process.wait(int(machine.unit["TimeoutStopSec"][0])) == 0
    store = machine.root / "var/lib/normstats/normstats.db"
    assert store.stat().st_mode & 0o777 == 0o600
    assert {one.name for one in (machine.root / "etc/normstats").iterdir()} == {
        "credentials.toml",
        "normstats.toml",
        "tls.crt",
        "tls.key",
    }


def test_a_reload_ends_no_call(machine: Machine) -> None:
    with normstats.connect(machine.target, tls=str(machine.authority), token=machine.token) as client:
        normalizer = client.create("robot/obs", normstats.Standardize(2))
        (command,) = machine.unit["ExecReload"]
        with normalizer.stream() as stream:
            for reloads in range(20):
                if reloads % 5 == 0:
                    words = shlex.split(command.replace("$MAINPID", str(machine.process.pid)))
                    subprocess.run(words, check=True)
                stream.update(np.ones((3, 2)))
        assert normalizer.stats().count == 60
    assert machine.process.poll() is None


def test_systemd_takes_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    file = tmp_path / "normstats.service"
    file.write_text(unit_text(Path("/")).replace("//", "/"))
    told = subprocess.run([analyze, "verify", str(file)], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    command = [analyze, "security", "--offline=yes", "--threshold=20", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_the_server_has_time_to_drain_and_the_files_are_those_that_the_readme_names() -> None:
    unit, text = settings((FOLDER / "normstats.service").read_text()), (FOLDER / "normstats.toml").read_text()
    (drain,) = re.findall(r"^drain_seconds = (\d+)$", text, re.MULTILINE)
    assert int(unit["TimeoutStopSec"][0]) > int(drain)
    (configured,) = unit["ExecStart"]
    path = shlex.split(configured)[-1]
    assert f"install -D --mode 644 deploy/systemd/normstats.toml {path}\n" in README
    for file in re.findall(r"deploy/systemd/[\w.]+", README):
        assert (DEPLOY.parent / file).exists()
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (FOLDER / target).exists(), target
