"""The console's pages: they load, fit, and can be used by keyboard and by ear."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

import normstats
from tests.console.conftest import Visit
from tests.server_process import ServerProcess

PAGES = ("#/", "#/normalizers", "#/n/{}/seen", "#/n/{}/one", "#/n/{}/unseen", "#/n/{}/layer", "#/n/{}/pixels")
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture
def some(client: normstats.Client, name: str) -> str:
    """Normalizers of every kind of page, under this name."""
    random = np.random.default_rng(0)
    for kind, features in (("seen", 17), ("one", 1), ("pixels", 3 * 64)):
        client.create(f"{name}/{kind}", normstats.Standardize(features))
        client.update({f"{name}/{kind}": random.normal(3, 2, (64, features))})
    client.get(f"{name}/seen").snapshot("monday")
    client.create(f"{name}/unseen", normstats.MinMax(3))
    client.create(f"{name}/layer", normstats.LayerNorm((4, 5)))
    return name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_loads_without_a_complaint(visit: Visit, server: ServerProcess, some: str, theme: str) -> None:
    page = visit(server, color_scheme=theme)
    for address in PAGES:
        page.evaluate("to => location.hash = to", address.format(some))
        page.wait_for_selector("main h1")
        page.wait_for_timeout(150)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/)[0] < 0.5")
    assert dark == (theme == "dark")


def test_nothing_is_wider_than_a_phone(visit: Visit, server: ServerProcess, some: str) -> None:
    page = visit(server, viewport={"width": 400, "height": 800})
    for address in PAGES:
        page.evaluate("to => location.hash = to", address.format(some))
        page.wait_for_selector("main h1")
        page.wait_for_timeout(150)
        assert not page.evaluate(WIDE), address


def test_the_theme_is_chosen_and_kept(visit: Visit, server: ServerProcess) -> None:
    page = visit(server, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-label") == "Theme: dark. Change to: as the system has it"
    dark = page.evaluate(background)
    page.reload()
    assert page.evaluate(background) == dark != light
    page.click("#theme")
    assert page.evaluate(background) == light


def test_each_kind_says_what_it_is(visit: Visit, server: ServerProcess, some: str) -> None:
    page = visit(server, f"#/n/{some}/layer")
    page.wait_for_selector("text=It keeps no statistics")
    assert page.inner_text(".details") == "Layer norm · 4 × 5 · each sample over its trailing axes · eps 1e−5"
    page.evaluate("to => location.hash = to", f"#/n/{some}/unseen")
    page.wait_for_selector("text=It has seen nothing yet")
    page.evaluate("to => location.hash = to", f"#/n/{some}/one")
    page.wait_for_selector(".single .huge")
    assert page.locator(".picture").is_hidden()
    page.evaluate("to => location.hash = to", f"#/n/{some}/pixels")
    page.wait_for_selector('.picture canvas[aria-label^="Mean of channel 3, from"]')


def test_what_is_not_there_is_said(visit: Visit, server: ServerProcess, name: str) -> None:
    page = visit(server, f"#/n/{name}", expects="404")
    page.wait_for_selector("text=There is no such normalizer")


def test_the_whole_of_it_goes_by_keyboard(visit: Visit, server: ServerProcess, some: str) -> None:
    page = visit(server)
    focused = "document.activeElement.textContent || document.activeElement.id"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the content"
    page.keyboard.press("/")
    page.wait_for_selector("#search:focus")
    page.keyboard.type(some.upper())
    page.wait_for_selector(f"text=5 with “{some.upper()}”")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == f"{some}/one"
    page.keyboard.press("Enter")
    page.wait_for_selector(".single")
    assert page.title() == f"{some}/one · normstats"
    page.keyboard.press("Escape")
    page.wait_for_selector(".list-row a:focus")
    assert page.evaluate(focused) == f"{some}/one"
    assert page.input_value("#search") == some.upper()
    page.keyboard.press("Escape")
    page.wait_for_selector("#search:focus")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Changing now")


def test_no_page_of_another_site_may_show_or_feed_it(server: ServerProcess) -> None:
    for path in ("/", "/static/main.js", "/static/console.css", "/static/vendor/uPlot.esm.js"):
        response = httpx.get(f"{server.http}{path}").raise_for_status()
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in response.headers
