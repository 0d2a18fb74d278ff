"""Rolling restart: SIGTERM under load, again and again; nobody sees an error, nothing is lost, nothing doubled."""

from __future__ import annotations

import threading
import time

import pytest

import normstats
from tests.faults.conftest import Promise, Site
from tests.faults.load import SPEC, Load
from tests.faults.sizes import sized


@sized("restarts", 1, 20)
@pytest.mark.timeout(900)
def test_rolling_restart(site: Site, promise: Promise, name: str, restarts: int) -> None:
    """One server on SQLite, two on PostgreSQL, of which callers know both."""
    servers = [site.server().start() for _ in range(1 if site.postgres is None else 2)]
    target = "ipv4:" + ",".join(server.target for server in servers)
    took, errors = [], []
    stopping = threading.Event()
    with normstats.connect(target, timeout=60) as client:
        normalizer = client.create(name, SPEC)

        def watch() -> None:
            try:
                versions = []
                for seen in normalizer.watch():
                    versions.append(seen.version)
                    if stopping.is_set():
                        break
                assert versions == sorted(set(versions))
            except BaseException as error:
                errors.append(error)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        with Load([target], name, producers=6, batches=100 * restarts, pause=0.01) as load:
            for number in range(restarts):
                load.wait_for((number + 0.5) / (restarts + 1))
                server = servers[number % len(servers)]
                started = time.monotonic()
                assert server.terminate() == 0
                took.append(time.monotonic() - started)
                server.start()
        assert max(took) < 20
        seen = load.check(target)
        stopping.set()
        normalizer.update(load.data[0, 0])
        watcher.join(20)
        assert not watcher.is_alive()
    assert not errors
    promise(
        f"Rolling restart: {site.name}, {restarts} x SIGTERM under load",
        "exit 0 within 20 s, no caller sees an error",
        f"exit 0 within {max(took):.1f} s, 0 errors; {seen}",
    )
