"""What the README says runs, as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server_process import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_session_runs(own_server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    (session,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert 'connect("localhost:50051")' in session
    exec(session.replace("localhost:50051", own_server.start().target), {})
    count, mean, std = (float(word) for word in capsys.readouterr().out.split())
    assert count == 256
    assert mean == pytest.approx(0, abs=1e-6)
    assert std == pytest.approx(1, abs=1e-6)


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).exists(), target
