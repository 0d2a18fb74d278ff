"""Connections are found by their callers' addresses, as gRPC writes those, and nobody else's is closed."""

from __future__ import annotations

import socket
import time

import pytest

from normserver import connections


@pytest.mark.parametrize(("host", "form"), [("127.0.0.1", "ipv4:127.0.0.1:{}"), ("::1", "ipv6:%5B::1%5D:{}")])
def test_the_connection_from_an_address_is_closed(host: str, form: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        one, other = (socket.create_connection(server.getsockname()[:2], 5) for _ in range(2))
        served = [server.accept()[0] for _ in range(2)]
        assert connections.close(form.format(one.getsockname()[1]))
        assert one.recv(1) == b""
        assert served[0].recv(1) == b""
        served[1].send(b"x")
        assert other.recv(1) == b"x"
        assert not connections.close(form.format(server.getsockname()[1] ^ 1))
        for each in (one, other, *served):
            each.close()


@pytest.mark.parametrize(("host", "form"), [("127.0.0.1", "ipv4:127.0.0.1:{}"), ("::1", "ipv6:%5B::1%5D:{}")])
def test_what_has_arrived_at_whom_is_known(host: str, form: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        callers = [socket.create_connection(server.getsockname()[:2], 5) for _ in range(2)]
        served = [server.accept()[0] for _ in callers]
        names = [form.format(one.getsockname()[1]) for one in callers]
        before = connections.delivered_bytes(names)
        assert set(before) == set(names)
        served[1].sendall(bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(callers[1].recv(1 << 20))
        deadline = time.monotonic() + 5
        while (after := connections.delivered_bytes([*names, "unix:"]))[names[1]] < before[names[1]] + 100_000:
            assert time.monotonic() < deadline
        assert after == {names[0]: before[names[0]], names[1]: before[names[1]] + 100_000}
        for each in (*callers, *served):
            each.close()


@pytest.mark.parametrize("caller", ["", "unix:", "unix:/run/socket", "ipv4:", "ipv4:127.0.0.1", "ipv4:127.0.0.1:x"])
def test_who_has_no_address_has_no_connection_that_can_be_found(caller: str) -> None:
    assert not connections.close(caller)
    assert not connections.delivered_bytes([caller])
