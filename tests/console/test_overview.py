"""The overview: load, who changes what, and who waits for whom."""

from __future__ import annotations

import re
import threading
import time

import numpy as np

import normstats
from tests.console.conftest import Visit
from tests.server_process import ServerProcess


def test_an_open_round_says_who_is_missing(
    visit: Visit, server: ServerProcess, client: normstats.Client, name: str
) -> None:
    normalizer = client.create(name, normstats.Standardize(2))
    connections = [normstats.connect(server.target) for _ in range(3)]
    members = [one.get(name).join("step", 3, timeout=8, on_missing="proceed", quorum=1) for one in connections]
    try:
        for present in (members, members[:2]):
            threads = [threading.Thread(target=member.sync, args=(np.ones((1, 2)),)) for member in present]
            for thread in threads:
                thread.start()
            if present is members:
                for thread in threads:
                    thread.join()
        page = visit(server)
        entry = page.locator(".rounds li", has_text=f"{normalizer.name}/step")
        entry.locator("text=2 of 3 present, missing").wait_for()
        assert [code.inner_text() for code in entry.locator("code").all()] == [members[2].id.hex()[:8]]
        assert "1 round waits for members" in page.inner_text(".summary")
        left = [float(re.sub(r" s left", "", entry.locator(".left").inner_text()))]
        page.wait_for_timeout(700)
        left.append(float(re.sub(r" s left", "", entry.locator(".left").inner_text())))
        assert 0.4 < left[0] - left[1] < 2
        members[2].sync(np.ones((1, 2)))
        for thread in threads:
            thread.join()
        entry.wait_for(state="detached")
    finally:
        for member in members:
            member.leave()
        for connection in connections:
            connection.close()


def test_who_contributes_to_what_is_there_within_seconds(
    visit: Visit, server: ServerProcess, client: normstats.Client, name: str
) -> None:
    page = visit(server)
    normalizer = client.create(name, normstats.Standardize(7))
    normalizer.update(np.ones((12, 7)))
    began = time.monotonic()
    row = page.locator("tr", has=page.locator(f'a.row-link[href="#/n/{name}"]'))
    row.wait_for()
    assert time.monotonic() - began < 4
    name_cell, _, rows, version, changed = row.locator("td").all_inner_texts()
    assert name_cell.startswith(name)
    assert "7 features" in name_cell
    assert (rows, version) == ("12", str(normalizer.stats().version))
    assert re.fullmatch(r"now|\d+ s ago", changed)
    assert page.locator("h1").inner_text() == "Ready"


def test_it_says_when_it_is_not_live_and_comes_back(visit: Visit, own_server: ServerProcess) -> None:
    own_server.start()
    port = own_server.http.rpartition(":")[2]
    page = visit(own_server, expects="ERR_")
    own_server.kill()
    page.wait_for_selector('#connection[data-state="waiting"]')
    assert page.inner_text("#connection") == "Not live"
    assert page.evaluate("document.documentElement.classList.contains('stale')")
    own_server.flags = ("--http", f"127.0.0.1:{port}")
    own_server.start()
    page.wait_for_selector('#connection[data-state="live"]')
    assert not page.evaluate("document.documentElement.classList.contains('stale')")
