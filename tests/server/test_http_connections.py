"""The HTTP port's connections: each has its time, and none keeps out another that has something to ask."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import normstats
from tests.certificates import Authority
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

TOKEN, HURRIED = "token-admin", "token-hurried"
REQUEST_SECONDS, IDLE_SECONDS, CONNECTIONS, PER_ADDRESS = 1.0, 2.0, 12, 4
# The sweep's interval, and a machine that is busy.
LATE = 2.0
HEADERS = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
GET = f"GET /api/GetDevice HTTP/1.1\r\n{HEADERS}\r\n".encode()
WATCH = f"GET /api/WatchActivity HTTP/1.1\r\n{HEADERS}\r\n".encode()
WIDE = 100_000


class Site:
    """A server with credentials that has little room and no patience."""

    def __init__(self, folder: Path, *, encrypted: bool) -> None:
        file = folder / "credentials.toml"
        limited = stanza("hurried", "admin", "robot/", HURRIED, "calls_per_second = 0.1")
        file.write_text("\n".join([stanza("admin", "admin", "", TOKEN), limited]))
        flags = ["--credentials", str(file), "--http-request-timeout", f"{REQUEST_SECONDS * 1000:.0f}ms"]
        flags += ["--http-idle-timeout", f"{IDLE_SECONDS:g}s", "--http-max-connections", str(CONNECTIONS)]
        flags += ["--http-max-connections-per-address", str(PER_ADDRESS)]
        self.tls: ssl.SSLContext | None = None
        self.authority = Authority(folder)
        if encrypted:
            pair = self.authority.issue("server", "127.0.0.1")
            flags += ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
            self.tls = ssl.create_default_context(cafile=str(self.authority.path))
        self.server = ServerProcess(folder, *flags).start()
        host, _, port = self.server.http.removeprefix("http://").rpartition(":")
        self.address = host, int(port)
        with normstats.connect(
            self.server.target, token=TOKEN, tls=normstats.TLS(self.authority.path) if encrypted else False
        ) as client:
            client.create("robot/obs", normstats.Standardize(WIDE)).update(np.ones((2, WIDE)))

    def raw(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection that has said nothing, from an address of this machine."""
        return socket.create_connection(self.address, 10, (source, 0))

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection, encrypted where the server says so."""
        made = self.raw(source)
        return made if self.tls is None else self.tls.wrap_socket(made, server_hostname="127.0.0.1")

    def rejected(self) -> dict[str, float]:
        """Connections closed before their time, by reason."""
        with self.connect("127.0.0.9") as connection:
            connection.sendall(f"GET /metrics HTTP/1.1\r\n{HEADERS}Connection: close\r\n\r\n".encode())
            text = to_the_end(connection).partition(b"\r\n\r\n")[2].decode()
        return {
            sample.labels["reason"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "normstats_http_connections_rejected_total"
        }


@pytest.fixture(scope="module", params=["plain", "TLS"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp(request.param), encrypted=request.param == "TLS")
    yield made
    made.server.stop()
    assert "Traceback" not in made.server.log()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("alone"), encrypted=False)
    yield made
    made.server.stop()
    assert "Traceback" not in made.server.log()


def to_the_end(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    came = b""
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        while more := connection.recv(1 << 16):
            came += more
    return came


def first(connection: socket.socket) -> bytes:
    """The status line and headers, and the body after them, if it says how long it is."""
    came = b""
    while b"\r\n\r\n" not in came and (more := connection.recv(1 << 16)):
        came += more
    head, _, body = came.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(1 << 16)
    return head


def are_open(connections: list[socket.socket]) -> list[bool]:
    """Which of them the server has not closed."""
    time.sleep(0.2)
    return [_is_open(one) for one in connections]


def _is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return bool(connection.recv(1 << 16))
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(10)


class TestTime:
    def test_a_silent_connection_is_closed(self, site: Site) -> None:
        before = site.rejected()
        with site.raw() as connection:
            started = time.monotonic()
            assert to_the_end(connection) == b""
            assert REQUEST_SECONDS / 2 < time.monotonic() - started < REQUEST_SECONDS + LATE
        assert site.rejected()["request_timeout"] == before["request_timeout"] + 1

    @pytest.mark.parametrize("start", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
    def test_headers_have_their_time_however_often_a_byte_comes(self, site: Site, start: bytes) -> None:
        with site.connect() as connection:
            connection.sendall(start)
            started = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() < started + 2 * (REQUEST_SECONDS + LATE):
                    connection.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - started < REQUEST_SECONDS + LATE

    def test_a_handshake_has_its_time(self, site: Site) -> None:
        with site.raw() as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00")  # of a ClientHello
            started = time.monotonic()
            to_the_end(connection)
            assert time.monotonic() - started < REQUEST_SECONDS + LATE

    def test_a_body_has_its_time(self, site: Site) -> None:
        with site.connect() as connection:
            connection.sendall(f"POST /api/CreateSnapshot HTTP/1.1\r\n{HEADERS}Content-Length: 99\r\n\r\n{{".encode())
            said = to_the_end(connection)
        assert said.startswith(b"HTTP/1.1 400 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["reason"] == "BODY_TIMEOUT"

    def test_one_that_rests_is_closed(self, site: Site) -> None:
        before = site.rejected()
        with site.connect() as connection:
            for _ in range(2):
                connection.sendall(GET)
                assert first(connection).startswith(b"HTTP/1.1 200")
                time.sleep(IDLE_SECONDS / 2)
            started = time.monotonic()
            assert connection.recv(1 << 16) == b"", "it is closed as it should be, by no reset"
            assert time.monotonic() - started < IDLE_SECONDS + LATE
        assert site.rejected() == before, "which is nothing to count"

    def test_one_that_is_answered_stays(self, site: Site) -> None:
        with site.connect() as connection:
            connection.sendall(WATCH)
            deadline = time.monotonic() + REQUEST_SECONDS + IDLE_SECONDS + LATE
            while time.monotonic() < deadline:
                assert connection.recv(1 << 16)

    def test_whoever_reads_nothing_is_not_waited_for(self, site: Site) -> None:
        before = site.rejected()
        with ExitStack() as stack:
            connection = stack.enter_context(site.raw("127.0.0.8"))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            if site.tls is not None:
                connection = site.tls.wrap_socket(connection, server_hostname="127.0.0.1")
            get = f"GET /api/GetRunningStats?normalizer=robot/obs HTTP/1.1\r\n{HEADERS}\r\n".encode()
            connection.sendall(3 * get)  # 3 times 6 MB
            deadline = time.monotonic() + 10 * REQUEST_SECONDS + LATE
            while site.rejected()["slow_reader"] == before["slow_reader"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)


class TestRoom:
    def test_silent_ones_make_room_for_one_that_asks(self, site: Site) -> None:
        with ExitStack() as stack:
            asking = stack.enter_context(site.connect())
            asking.sendall(WATCH)
            assert first(asking).startswith(b"HTTP/1.1 200")
            before = site.rejected()
            silent = [stack.enter_context(site.raw()) for _ in range(PER_ADDRESS + 2)]
            with site.connect() as another:
                another.sendall(GET)
                assert first(another).startswith(b"HTTP/1.1 200")
            assert are_open(silent) == [False] * 4 + [True] * 2
            assert are_open([asking]) == [True]
            assert site.rejected()["address_limit"] == before["address_limit"] + 4

    def test_addresses_share_what_there_is(self, site: Site) -> None:
        with ExitStack() as stack:
            addresses = [f"127.0.0.{number}" for number in (2, 3, 4)]
            silent = [stack.enter_context(site.raw(one)) for one in addresses for _ in range(PER_ADDRESS)]
            with site.connect("127.0.0.5") as another:
                another.sendall(GET)
                assert first(another).startswith(b"HTTP/1.1 200")
            assert are_open(silent) == [False, *[True] * (CONNECTIONS - 1)]

    def test_where_all_are_at_work_for_known_callers_one_more_is_refused(self, site: Site) -> None:
        with ExitStack() as stack:
            watching = [stack.enter_context(site.connect("127.0.0.6")) for _ in range(PER_ADDRESS)]
            for one in watching:
                one.sendall(WATCH)
                assert first(one).startswith(b"HTTP/1.1 200")
            with site.raw("127.0.0.6") as another:
                assert to_the_end(another) == b""
            assert all(are_open(watching))
            with site.connect("127.0.0.7") as elsewhere:
                elsewhere.sendall(GET)
                assert first(elsewhere).startswith(b"HTTP/1.1 200")

    def test_a_known_caller_that_rests_makes_room(self, site: Site) -> None:
        with ExitStack() as stack:
            resting = [stack.enter_context(site.connect("127.0.0.10")) for _ in range(PER_ADDRESS)]
            for one in resting:
                one.sendall(GET)
                assert first(one).startswith(b"HTTP/1.1 200")
            with site.connect("127.0.0.10") as another:
                another.sendall(GET)
                assert first(another).startswith(b"HTTP/1.1 200")
            assert are_open(resting) == [False, *[True] * (PER_ADDRESS - 1)]

    def test_of_many_that_are_closed_a_line_now_and_then_tells(self, plain: Site) -> None:
        for _ in range(500):
            plain.raw().close()
        held = [plain.raw() for _ in range(200)]
        for one in held:
            one.close()
        time.sleep(1)
        lines = [line for line in plain.server.log().splitlines() if "HTTP connections closed" in line]
        assert 1 <= len(lines) <= 3
        assert json.loads(lines[0])["address_limit"] > 0


class TestBodies:
    """Of which nothing is read before their caller is known, and may call."""

    @pytest.mark.parametrize(
        ("token", "status"), [("", 401), ("unknown", 401), (TOKEN, None)], ids=["nobody", "unknown", "known"]
    )
    def test_the_token_comes_first(self, site: Site, token: str, status: int | None) -> None:
        with site.connect() as connection:
            authorization = f"Authorization: Bearer {token}\r\n" if token else ""
            connection.sendall(
                f"POST /api/CreateSnapshot HTTP/1.1\r\nHost: localhost\r\n{authorization}"
                "Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n".encode()
            )
            said = first(connection)
            if status is None:
                assert said.startswith(b"HTTP/1.1 100")
                return
            assert said.startswith(b"HTTP/1.1 401"), said
            assert b"connection: close" in said.lower()
            assert to_the_end(connection) == b""

    def test_so_does_the_quota(self, site: Site) -> None:
        said = []
        for _ in range(2):
            with site.connect() as connection:
                connection.sendall(
                    f"POST /api/CreateSnapshot HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HURRIED}\r\n"
                    "Content-Length: 1000000\r\n\r\n{".encode()
                )
                said.append(to_the_end(connection))
        assert said[0].startswith(b"HTTP/1.1 400"), "it did not come in time, and counts"
        assert said[1].startswith(b"HTTP/1.1 429"), said[1]

    @pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/nothing", "/api/Nothing", "/api/GetDevice"])
    def test_pages_that_want_none_read_none(self, site: Site, path: str) -> None:
        with site.connect() as connection:
            method = "GET" if path != "/api/Nothing" else "POST"
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{HEADERS}Content-Length: 1000000\r\n\r\n".encode())
            assert b"connection: close" in to_the_end(connection).partition(b"\r\n\r\n")[0].lower()


def test_nobody_says_for_himself_where_he_comes_from(plain: Site) -> None:
    response = httpx.post(
        f"{plain.server.http}/api/CreateSnapshot",
        json={"normalizer": "robot/obs", "tag": "forged"},
        headers={"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7"},
    )
    assert response.status_code == 200, response.text
    (line,) = [line for line in plain.server.log().splitlines() if "snapshot created" in line]
    assert json.loads(line)["caller"].startswith("http:127.0.0.1:")
    assert "203.0.113" not in plain.server.log()
