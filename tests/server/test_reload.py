"""SIGHUP reloads what may change while the server runs, and ends nothing."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import normstats
from tests.faults.load import wait_until
from tests.postgres import database
from tests.server_process import ServerProcess

STANZA = """
[[identity]]
name = "robots"
tokens = ["sha256:{}"]
grants = [{{ scope = "admin", prefix = "" }}]
"""


def credentials(token: str) -> str:
    return STANZA.format(hashlib.sha256(token.encode()).hexdigest())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "credentials.toml").write_text(credentials("first"))
    (tmp_path / "settings.toml").write_text('log_level = "warning"\ncredentials = "credentials.toml"\n')
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(folder, "--config", "settings.toml", "--log-level", "info")
    process.flags = ("--config", "settings.toml")
    yield process
    process.stop()


def send(server: ServerProcess, number: signal.Signals) -> None:
    assert server.process is not None
    server.process.send_signal(number)


def test_sighup_reloads_credentials_and_log_level_and_drops_no_call(folder: Path, server: ServerProcess) -> None:
    (folder / "settings.toml").write_text('log_level = "info"\ncredentials = "credentials.toml"\n')
    server.start()
    with normstats.connect(server.target, token="first") as client:
        obs = client.create("robot/obs", normstats.Standardize(3))
        with obs.stream() as stream:
            for number in range(20):
                stream.update(np.ones((4, 3)))
                if number == 10:
                    (folder / "settings.toml").write_text('log_level = "debug"\ncredentials = "credentials.toml"\n')
                    send(server, signal.SIGHUP)
                    wait_until(lambda: '"event": "reloaded"' in server.log(), 5.0)
        assert obs.stats().count == 80
    wait_until(lambda: '"level": "debug"' in server.log(), 5.0)
    (folder / "credentials.toml").write_text(credentials("second"))
    send(server, signal.SIGHUP)
    wait_until(lambda: server.log().count('"event": "reloaded"') == 2, 5.0)
    with normstats.connect(server.target, token="second") as client:
        assert client.get("robot/obs").stats().count == 80
    with normstats.connect(server.target, token="first", timeout=3) as client, pytest.raises(normstats.Unauthenticated):
        client.get("robot/obs")
    assert server.terminate() == 0


@pytest.mark.parametrize("text", ["log_level = ", 'log_level = "loud"\n', None])
def test_settings_that_cannot_be_read_again_change_nothing(
    folder: Path, server: ServerProcess, text: str | None
) -> None:
    (folder / "settings.toml").write_text('log_level = "info"\n')
    server.start()
    (folder / "settings.toml").unlink() if text is None else (folder / "settings.toml").write_text(text)
    send(server, signal.SIGHUP)
    wait_until(lambda: "settings cannot be read again" in server.log(), 5.0)
    with normstats.connect(server.target) as client:
        assert client.normalize([[1.0, 3.0]], normstats.LayerNorm(2)).shape == (1, 2)
    assert server.terminate() == 0
    assert "Traceback" not in server.log()


def test_settings_that_need_a_restart_are_named(folder: Path, server: ServerProcess) -> None:
    (folder / "settings.toml").write_text('log_level = "info"\n')
    server.start()
    (folder / "settings.toml").write_text('log_level = "info"\nmax_calls = 7\n')
    send(server, signal.SIGHUP)
    wait_until(lambda: '"need_a_restart": ["max_calls"]' in server.log(), 5.0)
    assert server.terminate() == 0


def test_sighup_reaches_every_process(folder: Path) -> None:
    (folder / "settings.toml").write_text('log_level = "info"\n')
    with database() as url:
        server = ServerProcess(folder, "--config", "settings.toml", store=url, processes=2).start()
        try:
            send(server, signal.SIGHUP)
            wait_until(lambda: server.log().count('"event": "reloaded"') == 2, 10.0)
            assert server.terminate() == 0
        finally:
            server.stop()
