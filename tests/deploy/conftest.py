from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from normserver import config
from tests.deploy.manifests import POD_IP, server, settings_files


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], config.Settings]:
    """What the server itself makes of an overlay's command line, variables and file of settings."""
    for name in [name for name in os.environ if name.startswith("NORMSTATS_")]:
        monkeypatch.delenv(name)

    def load(which: str) -> config.Settings:
        container = server(which)["spec"]["containers"][0]
        for variable in container["env"]:
            if variable["name"].startswith("NORMSTATS_"):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                value = "postgresql://user:password@normstats-db-rw:5432/normstats" if secret else variable["value"]
                monkeypatch.setenv(variable["name"], value)
        for path, text in settings_files(which).items():
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        arguments = [one.replace("$(POD_IP)", POD_IP) for one in container["args"]]
        assert not any("$(" in one for one in arguments)
        return config.load([one.replace("--config=", f"--config={tmp_path}") for one in arguments])

    return load
