"""A core task that ends: logged with its traceback, readiness off at once, and the process exits with an error."""

from __future__ import annotations

import sys
import time

import httpx
import pytest

import normstats
from tests.faults.conftest import Promise, Site
from tests.server_process import ServerProcess

# Each core task or thread, and how a bug in what it works with ends it. They run in the server's process.
CORE = {
    "task committer": "from normserver.published import Published as part; name = 'publish'",
    "task store": "from normserver.store.sqlite import SqliteStore as part; name = 'check'",
    "task health": "from normserver.compute import Compute as part; name = 'is_alive'",
    "task files": "from normserver.access.credentials import Credentials as part; name = 'look'",
    "thread compute": "from normserver.turns import Turns as part; name = 'take'",
}
# What only observes the server.
AUXILIARY = {
    "activity": "from normserver.activity.load import Sampler as part; name = 'sample'",
    "contributors": "from normserver.activity.contributors import Contributors as part; name = 'note'",
    "metrics": "from normserver.metrics import Metrics as part; name = 'commit_done'",
}

# `python broken.py FILE ...` serves until FILE is there; from then on one public method of one part raises.
BROKEN = """
import os, sys
{part}
whole = vars(part)[name]

def method(self, *arguments, **options):
    if os.path.exists(sys.argv[1]):
        raise RuntimeError("a bug")
    return whole.fget(self) if isinstance(whole, property) else whole(self, *arguments, **options)

setattr(part, name, property(method) if isinstance(whole, property) else method)
from normserver.__main__ import main

sys.exit(main(sys.argv[5:]))
"""


class Broken(ServerProcess):
    """A server in which a part fails once `break_it` was called."""

    def __init__(self, site: Site, part: str, *flags: str) -> None:
        script = site.folder / "broken.py"
        script.write_text(BROKEN.format(part=part))
        self.mark = site.folder / "broken"
        super().__init__(site.folder, *flags, prefix=(sys.executable, str(script), str(self.mark)))

    def break_it(self) -> None:
        self.mark.touch()


def load(target: str, batches: int, timeout: float = 30.0) -> None:
    """Use what the core tasks do: commit, and normalize something that a compute thread takes."""
    with normstats.connect(target, timeout=timeout) as client:
        for _ in range(batches):
            obs = client.create("robot/obs", normstats.Standardize(4), exist_ok=True)
            obs.update([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
            client.normalize([[1.0] * 1_000_000] * 2, normstats.LayerNorm(1_000_000))


@pytest.mark.parametrize("core", CORE)
def test_a_core_task_that_ends_ends_the_server(core: str, sqlite: Site, promise: Promise) -> None:
    credentials = sqlite.folder / "credentials.toml"
    credentials.write_text("")
    flags = ("--credentials", str(credentials)) if core == "task files" else ()
    server = Broken(sqlite, CORE[core], *flags)
    try:
        server.start()
        if not flags:
            load(server.target, 1)
        assert server.process is not None
        server.break_it()
        began = time.monotonic()
        if core in ("task committer", "thread compute"):
            with pytest.raises(normstats.NormstatsError):
                load(server.target, 1, timeout=2.0)
        code = server.process.wait(10)
        seconds = time.monotonic() - began
    finally:
        server.stop()
    log = server.log()
    assert code == 1
    assert "core task ended" in log
    assert f"{core} ended unexpectedly" in log
    assert "RuntimeError: a bug" in log
    assert seconds < 5.0 + 2.0  # the call that met the bug may take its timeout
    promise(f"A core task ends: {core}", "traceback, unready, exit 1 within 5 s", f"exit 1 after {seconds:.1f} s")


@pytest.mark.parametrize("part", AUXILIARY)
def test_what_only_observes_never_stops_commits(part: str, sqlite: Site) -> None:
    server = Broken(sqlite, AUXILIARY[part])
    try:
        server.start()
        load(server.target, 1)
        server.break_it()
        time.sleep(1.5)
        load(server.target, 3)
        server.mark.unlink()
        time.sleep(1.5)
        load(server.target, 1)
        assert httpx.get(f"{server.http}/readyz").status_code == 200
        with normstats.connect(server.target) as client:
            assert client.get("robot/obs").stats().count == 10
        assert server.terminate() == 0
    finally:
        server.stop()
    assert "RuntimeError: a bug" in server.log()
