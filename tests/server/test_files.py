"""Files of credentials and keys: there is a warning where others may write or read them, at the start and later on."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from normserver import files
from normserver.files import warn_of_readers, warn_of_writers
from tests.certificates import Authority
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

NOBODY = 65534


def warned(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether there was a warning since this was asked."""
    found = [record for record in caplog.records if record.name == files.__name__ and record.levelno == logging.WARNING]
    caplog.clear()
    return bool(found)


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o600, False), (0o644, False), (0o664, True), (0o646, True), (0o660, True)]
)
def test_who_may_write(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, expected: bool) -> None:
    file = tmp_path / "credentials.toml"
    file.touch()
    file.chmod(mode)
    warn_of_writers(file)
    assert warned(caplog) == expected


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o600, False), (0o400, False), (0o644, True), (0o604, True), (0o601, True)]
)
def test_who_may_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, expected: bool) -> None:
    file = tmp_path / "key.pem"
    file.touch()
    file.chmod(mode)
    warn_of_readers(file)
    assert warned(caplog) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_whose_file_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key.pem"
    file.touch()
    file.chmod(0o440)
    warn_of_readers(file)
    assert not warned(caplog), "root lets a group read it, as Kubernetes does"
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o600)
    for warn in (warn_of_readers, warn_of_writers):
        warn(file)
        assert warned(caplog), "its owner is neither root nor this user"


def test_a_server_says_so_at_its_start_and_when_it_changes(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("server", "127.0.0.1")
    credentials = tmp_path / "credentials.toml"
    credentials.write_text(stanza("robot", "read", "", "token"))
    credentials.chmod(0o600)
    pair.key.chmod(0o644)
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--credentials", str(credentials)]
    server = ServerProcess(tmp_path, *flags).start()

    def said() -> dict[str, tuple[str, str]]:
        lines = [json.loads(line) for line in server.log().splitlines() if '"level": "warning"' in line]
        return {line["path"]: (line["mode"], line["remedy"]) for line in lines if "path" in line}

    try:
        assert said() == {str(pair.key): ("0644", f"chmod 600 {pair.key}")}
        credentials.chmod(0o666)
        deadline = time.monotonic() + 10
        while str(credentials) not in said():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert said()[str(credentials)] == ("0666", f"chmod go-w {credentials}")
    finally:
        server.stop()
