"""Without a token the console reads, or asks for one; with one it does what the token allows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

import normstats
from tests.console.conftest import Visit
from tests.server_process import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAME = "robot/obs"
SCOPES = ("read", "write", "admin")


def token(scope: str) -> str:
    return f"normstats_console-{scope}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with credentials, and one normalizer."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "credentials.toml"
    file.write_text(
        "\n".join(
            f'[[identity]]\nname = "{scope}"\ngrants = [{{ scope = "{scope}", prefix = "robot/" }}]\n'
            f'tokens = ["sha256:{hashlib.sha256(token(scope).encode()).hexdigest()}"]\n'
            for scope in SCOPES
        )
    )
    server = ServerProcess(folder, "--credentials", str(file)).start()
    with normstats.connect(server.target, token=token("admin")) as client:
        client.create(NAME, normstats.Standardize(3)).update(np.arange(12.0).reshape(4, 3))
    yield server
    server.stop()


def bring(page: Page, value: str) -> None:
    page.fill("dialog input", value)
    page.click("dialog button[type=submit]")


def test_without_credentials_it_only_reads(
    visit: Visit, server: ServerProcess, client: normstats.Client, name: str
) -> None:
    client.create(name, normstats.Standardize(1)).update([1.0, 2.0])
    page = visit(server, f"#/n/{name}")
    page.wait_for_selector(".single")
    assert page.inner_text("#access") == "Read-only"
    assert page.locator("div.actions").is_hidden()
    assert page.get_by_role("button", name="Take one").is_hidden()


def test_the_first_visit_asks_the_server_for_nothing_that_it_refuses(visit: Visit, guarded: ServerProcess) -> None:
    refused: list[str] = []
    page = visit(guarded, "#/normalizers", live=False)
    page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    page.goto(f"{guarded.http}/#/n/{NAME}")
    page.reload()
    page.wait_for_selector("dialog >> text=This server asks who you are.")
    page.wait_for_timeout(1_000)  # longer than a feed waits for its next try
    assert refused == []
    bring(page, token("read"))
    page.wait_for_selector('#connection[data-state="live"]')


def test_a_token_is_asked_for_tried_and_kept_in_the_tab(visit: Visit, guarded: ServerProcess) -> None:
    page = visit(guarded, live=False, expects="401")
    page.wait_for_selector("dialog >> text=This server asks who you are.")
    bring(page, "normstats_wrong")
    page.wait_for_selector("dialog .wrong:visible")
    assert page.evaluate("sessionStorage.length") == 0
    bring(page, token("read"))
    page.wait_for_selector('#connection[data-state="live"]')
    assert page.locator("dialog").count() == 0
    assert page.evaluate("Object.values(sessionStorage)") == [token("read")]
    assert token("read") not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    page.reload()
    page.wait_for_selector('#connection[data-state="live"]')
    page.goto(f"{guarded.http}/#/normalizers")
    page.wait_for_selector(".list-row >> text=obs")  # asked for by the prefix that may be read
    page.click("#access")
    page.click("text=Forget the token")
    page.wait_for_selector("dialog >> text=This server asks who you are.")
    assert page.evaluate("sessionStorage.length") == 0


def test_what_a_token_does_not_allow_is_said(visit: Visit, guarded: ServerProcess) -> None:
    page = visit(guarded, f"#/n/{NAME}", live=False, expects="40")
    bring(page, token("read"))
    page.click("text=Take a snapshot")
    page.fill("dialog #tag", "monday")
    page.click("dialog >> text=Take it")
    page.wait_for_selector("dialog .wrong:visible")
    assert "write" in page.inner_text("dialog .wrong")
    assert page.input_value("dialog #tag") == "monday"


def test_with_one_it_snapshots_freezes_thaws_and_restores(visit: Visit, guarded: ServerProcess) -> None:
    with normstats.connect(guarded.target, token=token("admin")) as client:
        normalizer = client.get(NAME)
        page = visit(guarded, f"#/n/{NAME}", live=False)
        bring(page, token("admin"))
        page.click("text=Take a snapshot")
        page.fill("dialog #tag", "tuesday")
        page.click("dialog >> text=Take it")
        page.wait_for_selector("text=Snapshot tuesday is kept.")
        assert [one.tag for one in normalizer.snapshots()] == ["tuesday"]

        page.click("button:has-text('Freeze')")
        assert "contributions are refused" in page.inner_text("dialog")
        page.click("dialog >> text=Cancel")
        assert not normalizer.refresh().frozen
        page.click("button:has-text('Freeze')")
        page.click("dialog button[type=submit]")
        page.wait_for_selector(".badge:visible")
        assert normalizer.refresh().frozen
        page.click("button:has-text('Thaw')")
        page.click("dialog button[type=submit]")
        page.wait_for_selector(".badge", state="hidden")
        assert not normalizer.refresh().frozen

        normalizer.update(np.full((4, 3), 1e6))
        page.wait_for_selector(".figures dd:text-is('8')")
        page.click("button:has-text('Restore')")
        assert "(4 rows) no longer counts" in page.inner_text("dialog")
        page.click("dialog button[type=submit]")
        page.wait_for_selector(".figures dd:text-is('4')")
        assert normalizer.stats().count == 4

        page.click('button[aria-label="Delete tuesday"]')
        page.click("dialog button[type=submit]")
        page.wait_for_selector("text=Snapshot tuesday is deleted.")
        assert list(normalizer.snapshots()) == []
