"""A browser, as people have one, before a real server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import normstats
from tests.server_process import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Visit = Callable[..., "Page"]


# For this folder alone: while it is open, its thread has an event loop that asyncio's own tests would trip over.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's chromium; playwright's own is never fetched."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens a page of a server's console, `#/` and on.

    Whatever the browser complains of (errors of scripts, of loading, of the content security policy) fails the test,
    but for what has `expects` in it. `answer` answers the page's calls in the server's place.
    """
    complaints: list[str] = []
    contexts = []

    def open_page(
        server: ServerProcess,
        page: str = "#/",
        *,
        expects: str = "",
        live: bool = True,
        answer: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> Page:
        context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        opened = context.new_page()

        def complain(text: str) -> None:
            if not expects or expects not in text:
                complaints.append(text)

        opened.on("console", lambda said: complain(said.text) if said.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complain(str(error)))
        if answer is not None:
            opened.route("**/api/**", answer)
        opened.goto(f"{server.http}/{page}")
        if live:
            opened.wait_for_selector('#connection[data-state="live"]')
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def client(server: ServerProcess) -> Iterator[normstats.Client]:
    """The client itself, whose numbers the pages are held against."""
    with normstats.connect(server.target) as connected:
        yield connected
