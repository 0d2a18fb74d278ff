"""Whatever is said to the page, it is text."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.console.conftest import Visit
from tests.server_process import ServerProcess

MARKUP = '<img src="x" onerror="globalThis.caught=1"><script>globalThis.caught=1</script><b>bold</b>'
TEXTS = {"name", "normalizer", "group", "tag", "message", "release", "store", "device", "notReady"}


def spoiled(value: Any) -> Any:
    """The same message, with markup for every text."""
    if isinstance(value, dict):
        return {
            key: MARKUP if key in TEXTS and isinstance(inner, str) else spoiled(inner) for key, inner in value.items()
        }
    return [spoiled(inner) for inner in value] if isinstance(value, list) else value


ROUND = {
    "group": "g", "round": "3", "size": 3, "present": ["AAAA"], "missing": ["BBBB"],
    "waitedSeconds": 3, "remainingSeconds": 20, "normalizer": "n",
}  # fmt: skip
PRODUCER = {
    "producerId": "AAAA", "normalizer": "n", "lastTime": "2020-01-01T00:00:00Z", "sequence": "1", "contributions": "1",
    "duplicates": "0", "contributionsPerSecond": 1,
}  # fmt: skip
ACTIVE = {
    "name": "n", "version": "1", "numFeatures": "1", "count": 1, "updateTime": "2020-01-01T00:00:00Z",
    "contributionsPerSecond": 1,
}  # fmt: skip
NORMALIZER = {
    "name": "n", "spec": {"standardize": {"numFeatures": "1"}}, "version": "1", "count": 1, "numBatches": "1",
    "frozen": True, "updateTime": "2020-01-01T00:00:00Z",
}  # fmt: skip
STATS = {
    "normalizer": "n", "version": "1", "count": "AAAAAAAA8D8=", "numBatches": "1", "mean": "AAAAAAAA8D8=",
    "var": "AAAAAAAA8D8=", "min": "AAAAAAAA8D8=", "max": "AAAAAAAA8D8=", "updateTime": "2020-01-01T00:00:00Z",
}  # fmt: skip
SNAPSHOT = {
    "normalizer": "n",
    "tag": "t",
    "version": "1",
    "count": 1,
    "numBatches": "1",
    "createTime": "2020-01-01T00:00:00Z",
}
ANSWERS: dict[str, Any] = {
    "ListNormalizers": {"normalizers": [NORMALIZER], "totalCount": "1", "nextPageToken": ""},
    "GetNormalizer": {"normalizer": NORMALIZER},
    "ListSnapshots": {"snapshots": [SNAPSHOT], "nextPageToken": ""},
    "GetHistory": {"points": [], "producers": [PRODUCER]},
    "WatchRunningStats": {"stats": STATS},
}


@pytest.mark.parametrize("page_at", ["#/", "#/normalizers", "#/n/n"])
def test_no_text_of_the_servers_becomes_markup(visit: Visit, server: ServerProcess, page_at: str) -> None:
    activity = httpx.get(f"{server.http}/api/GetActivity?seconds=2").json()["activity"]
    activity |= {"normalizers": [ACTIVE], "producers": [PRODUCER], "rounds": [ROUND]}
    activity["server"]["notReady"] = "why"

    def answer(route: Any) -> None:
        method = re.sub(r".*/api/|\?.*", "", route.request.url)
        said = {"activity": activity} if method == "WatchActivity" else ANSWERS.get(method)
        if said is None:
            route.fulfill(status=412, json={"code": "FAILED_PRECONDITION", "message": MARKUP})
        elif method.startswith("Watch"):
            route.fulfill(body=f"data: {json.dumps(spoiled(said))}\n\n", content_type="text/event-stream")
        else:
            route.fulfill(json=spoiled(said))

    page = visit(server, page_at, live=False, expects="412", answer=answer)
    page.get_by_text("<b>bold</b>").filter(visible=True).first.wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("globalThis.caught") is None
    assert page.locator("main img, main script, main b, dialog img").count() == 0


def test_an_address_is_text_too(visit: Visit, server: ServerProcess) -> None:
    page = visit(server, "#/n/" + "%3Cb%3Ebold%3C/b%3E%3Cimg src=x onerror='globalThis.caught=1'%3E", expects="400")
    page.get_by_text("It cannot be shown").or_(page.get_by_text("There is no such normalizer")).wait_for()
    assert "<b>bold</b>" in page.inner_text("h1")
    page.goto(f"{server.http}/#/normalizers?q=%3Cb%3Ebold%3C%2Fb%3E")
    page.wait_for_selector("text=No name has")
    assert "<b>bold</b>" in page.inner_text(".empty")
    assert page.locator("main b, main img").count() == 0
    assert page.evaluate("globalThis.caught") is None


def test_a_script_that_got_in_would_not_run_nor_send(visit: Visit, server: ServerProcess) -> None:
    page = visit(server, expects="Content Security Policy")
    refused = page.evaluate(
        """async () => {
            const refused = [];
            addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "globalThis.caught = 1";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", '<p onclick="globalThis.caught = 1" id="bait">x</p>');
            document.getElementById("bait").click();
            await fetch("http://127.0.0.1:1/").catch(() => {});
            await new Promise(done => setTimeout(done, 100));
            return refused;
        }"""
    )
    assert refused == ["script-src-elem", "script-src-attr", "connect-src"]
    assert page.evaluate("globalThis.caught") is None
