"""Whatever is sent to the HTTP port is answered with what is wrong with it: never by 500, or a traceback in the log."""

from __future__ import annotations

import contextlib
import json
import socket
import string
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import normstats
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

TOKEN = "token-admin"
EXAMPLES = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
METHODS = ("CreateSnapshot", "RestoreSnapshot", "DeleteSnapshot", "UpdateNormalizer")
FIELDS = ("name", "normalizer", "tag", "keep_last", "keepLast", "weight", "bias", "frozen", "reset", "@type", "")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with credentials, which is well when all was sent."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "credentials.toml"
    file.write_text(stanza("admin", "admin", "", TOKEN))
    server = ServerProcess(folder, "--credentials", str(file)).start()
    with normstats.connect(server.target, token=TOKEN) as client:
        client.create("robot/obs", normstats.Standardize(3)).update([[1.0, 2.0, 3.0]])
    yield server
    assert httpx.get(f"{server.http}/healthz").status_code == 200
    server.stop()
    assert "Traceback" not in server.log()
    assert '"bug"' not in server.log()


@pytest.fixture(scope="module")
def caller(guarded: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.http, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as client:
        yield client


def post(caller: httpx.Client, method: str, body: bytes, **headers: str) -> dict[str, Any]:
    """What a body that cannot be read is answered."""
    response = caller.post(f"/api/{method}", content=body, headers=headers)
    assert response.status_code == 400, (response.status_code, response.text)
    told: dict[str, Any] = response.json()
    assert told["code"] == "INVALID_ARGUMENT"
    return told


BODIES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "body is no JSON at byte 1: "),
    "nested": (b"[" * 100_000, "body has 100000 objects and arrays; expected 32 at most"),
    "nested, and closed": (b'{"tag":' * 5_000 + b"1" + b"}" * 5_000, "body has 5000 objects"),
    "nested, within bounds": (b'{"tag":' + b"[" * 31 + b"]" * 31 + b"}", "request cannot be read"),
    "many values": (b"[" + b"1," * 5_000 + b"1]", "body has more than 5000 values"),
    "a long integer": (b'{"keep_last": ' + b"9" * 5_000 + b"}", "body has a number that cannot be read"),
    "a large integer": (b'{"keep_last": 123456789012345678901234567890}', "request cannot be read"),
    "a large number": (b'{"keep_last": 1e999}', "body has the number 1e999, which no float64 holds"),
    "NaN": (b'{"keep_last": NaN}', "body has NaN, which JSON has not"),
    "-Infinity": (b'{"keep_last": -Infinity}', "body has -Infinity, which JSON has not"),
    "a half": (b'{"keep_last": 0.5}', "request cannot be read"),
    "no UTF-8": (b'{"tag": "\xff"}', "body is no UTF-8 at byte 9"),
    "UTF-16": ('{"tag": "x"}'.encode("utf-16"), "body is no UTF-8 at byte 0"),
    "half a character": (b'{"tag": "\\ud800"}', "request cannot be read"),
    "half a character as a field": (b'{"\\ud800": 1}', "body has a field whose name is not ASCII"),
    "a field twice": (b'{"tag": "a", "tag": "b"}', "body has a field twice in one object"),
    "two values": (b"{} {}", "body is no JSON at byte 3: Extra data"),
    "a list": (b"[1]", "request is no object"),
    "nothing": (b"null", "request is no object"),
    "an unknown field": (b'{"nam": "x"}', "request cannot be read"),
    "an object for a name": (b'{"normalizer": {"a": 1}}', "request cannot be read"),
    "too much": (b'{"tag": "' + b"x" * (1 << 20) + b'"}', "body has more than 1048576 bytes"),
}


@pytest.mark.parametrize("case", BODIES)
def test_what_is_wrong_with_a_body_is_said(caller: httpx.Client, case: str) -> None:
    body, message = BODIES[case]
    assert post(caller, "CreateSnapshot", body)["message"].startswith(message)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "?"]
)
def test_a_body_of_another_kind_is_refused(caller: httpx.Client, kind: str) -> None:
    told = post(caller, "CreateSnapshot", b"{}", **{"Content-Type": kind})
    assert told["message"].endswith("expected Content-Type: application/json")


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["NaN", "", "AA=="])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=30,
)
bodies = (
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=6).map(
        lambda one: json.dumps(one).encode()
    )
    | values.map(lambda one: json.dumps(one).encode())
    | st.binary(max_size=200)
    | st.text('[]{}",:0123456789eE+-.truefalsnINy\\ud8 ', max_size=200).map(str.encode)
)


@EXAMPLES
@given(method=st.sampled_from(METHODS), body=bodies)
def test_any_body_is_answered(caller: httpx.Client, method: str, body: bytes) -> None:
    response = caller.post(f"/api/{method}", content=body)
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    json.loads(response.content)


queries = st.lists(
    st.tuples(
        st.sampled_from(
            ("name", "normalizer", "limit", "prefix", "page_token", "page_size", "include_state", "seconds")
        )
        | st.text(max_size=5),
        st.text(max_size=20) | st.integers().map(str) | st.floats().map(str) | st.sampled_from(["true", "9" * 5_000]),
    ),
    max_size=4,
)


@EXAMPLES
@given(
    method=st.sampled_from(
        ("GetActivity", "GetHistory", "GetRunningStats", "ListNormalizers", "CompareSnapshots", "", "?")
    ),
    query=queries,
)
def test_any_query_is_answered(caller: httpx.Client, method: str, query: list[tuple[str, str]]) -> None:
    encoded = [(key.encode(errors="surrogatepass"), value.encode(errors="surrogatepass")) for key, value in query]
    response = caller.get(f"/api/{method}", params=encoded)  # type: ignore[arg-type]
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)


def answered(server: ServerProcess, request: bytes, *, ends: bool = False) -> bytes:
    """The first line of what is answered; nothing where the connection is closed. `ends`: no more will be sent."""
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(request)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while b"\r\n" not in said and (more := connection.recv(1 << 16)):
                said += more
        except ConnectionResetError:
            pass
        return said.partition(b"\r\n")[0]


visible = st.text(string.printable, max_size=30).map(str.encode)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Host", b"Authorization", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect"]
        )
        | visible,
        st.sampled_from(
            [
                b"localhost",
                b"[::1",
                b"chunked",
                b"websocket, upgrade",
                b"Bearer " + TOKEN.encode(),
                b"99999999999999999999",
            ]
        )
        | visible
        | st.binary(max_size=20),
    ),
    max_size=5,
)
paths = (
    st.sampled_from(
        [b"/", b"/static/%00", b"/static/..%2f", b"/static/" + b"a" * 5_000, b"*", b"//[/", b"/metrics", b"/api/%ff"]
    )
    | visible
)


@EXAMPLES
@given(
    method=st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT"]) | visible,
    path=paths,
    headers=headers,
    rest=st.binary(max_size=100),
)
def test_any_bytes_are_answered(
    guarded: ServerProcess, method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    lines = [method + b" " + path + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
    said = answered(guarded, b"\r\n".join([*lines, b"", rest]), ends=True)
    assert not said.startswith(b"HTTP/1.1 5"), said


@pytest.mark.parametrize(
    "path", ["/static/%00", "/static/" + "a/" * 3_000, "/static/%ff%fe", "/static/" + "a" * 300, "//[/", "/api/%ff"]
)
def test_what_is_not_there_is_not_found(guarded: ServerProcess, path: str) -> None:
    assert answered(guarded, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("host", ["[::1", "[", "]", "a b", "%00", "local\xffhost", "::1", ""])
def test_any_host_is_answered(guarded: ServerProcess, host: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
    assert answered(guarded, request).split()[1] in (b"400", b"401", b"403")


def test_a_body_that_breaks_off_is_nothing_to_log(guarded: ServerProcess) -> None:
    head = f"POST /api/CreateSnapshot HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    for rest in (
        "Content-Length: 100\r\n\r\n{",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        "Transfer-Encoding: chunked\r\n\r\nx",
    ):
        answered(guarded, (head + rest).encode(), ends=True)


def test_a_wrong_chunk_behind_a_stream_that_is_answered_is_nothing_to_log(guarded: ServerProcess) -> None:
    host, _, port = guarded.http.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(
            f"GET /api/WatchActivity HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"nonsense\r\n")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                pass


def test_wrong_requests_are_not_logged_one_by_one(guarded: ServerProcess) -> None:
    before = len(guarded.log().splitlines())
    for _ in range(200):
        assert answered(guarded, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
        answered(guarded, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert len(guarded.log().splitlines()) - before < 5
