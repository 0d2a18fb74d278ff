"""Ten thousand normalizers stay usable."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from normserver.app import open_store
from normserver.records import Record, policy_of
from normstats import specs
from tests.console.conftest import Visit
from tests.server_process import ServerProcess

MANY = 10_000


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that has them: fleet/0000/obs and on."""
    server = ServerProcess(tmp_path_factory.mktemp("full"))
    spec = specs.Standardize(8)
    running = policy_of(spec).seed(torch.zeros(8), torch.ones(8), count=3, num_batches=1)
    store = open_store(server.store)
    store.open()
    with store.transaction() as transaction:
        for number in range(MANY):
            transaction.insert(Record(f"fleet/{number:04}/obs", spec, 2, running, False, 1.7e9, 1.7e9))
    store.close()
    yield server.start()
    server.stop()


def test_any_of_ten_thousand_is_found_and_opened_at_once(visit: Visit, full: ServerProcess) -> None:
    page = visit(full, "#/normalizers")
    page.wait_for_selector("text=10,000")
    took = []
    for number in (7351, 4, 9020):  # the quickest counts: what else the machine does is not the page's fault
        began = time.monotonic()
        page.fill("#search", f"{number:04}/O")
        page.wait_for_selector(f'.list-row a:has(mark):has-text("fleet/{number:04}/obs")')
        took.append(time.monotonic() - began)
        assert page.locator(".list-row mark").all_inner_texts() == [f"{number:04}/", "o"]
        assert page.inner_text("[role=status].muted") == f"1 with “{number:04}/O”"
    assert min(took) < 1
    began = time.monotonic()
    page.press("#search", "Enter")
    page.wait_for_selector("h1:has-text('fleet/9020/obs')")
    page.wait_for_selector("text=Exact values")
    assert time.monotonic() - began < 5


def test_only_what_is_in_sight_is_in_the_page(visit: Visit, full: ServerProcess) -> None:
    page = visit(full, "#/normalizers")
    page.wait_for_selector('.list-row[aria-rowindex="2"]')
    assert page.locator(".list-row").count() < 80
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector("text=9999/")
    assert page.locator(".list-row").count() < 80
    page.locator(".list-row", has_text="9998/").locator("a").click()
    page.wait_for_selector("text=Exact values")
    page.go_back()
    page.wait_for_selector(".list-row a:focus")
    assert page.evaluate("document.activeElement.textContent") == "fleet/9998/obs"


def test_arrows_walk_through_all_of_them(visit: Visit, full: ServerProcess) -> None:
    page = visit(full, "#/normalizers")
    page.wait_for_selector('.list-row[aria-rowindex="2"]')
    page.focus("#search")
    for _ in range(130):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "fleet/0129/obs"
    box = page.locator(".list-row a:focus").bounding_box()
    assert box is not None
    assert 0 < box["y"] < 900


def test_who_types_faster_than_the_answer_comes_opens_what_he_typed(visit: Visit, full: ServerProcess) -> None:
    page = visit(full, "#/normalizers")
    page.wait_for_selector('.list-row[aria-rowindex="2"]')
    page.focus("#search")
    page.keyboard.type("7351")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('fleet/7351/obs')")
