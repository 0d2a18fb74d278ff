"""Which connections are closed, on a clock of the test's own."""

from __future__ import annotations

import pytest

from normserver import process
from normserver.access.shares import Shares, address_holder, share_of
from normserver.connections import Accepted
from normserver.errors import ResourceExhausted
from normserver.guard import SILENT_SECONDS, ConnectionGuard

PORT = 50051


class Listener:
    """A listener's connections, seen by a guard that looks once a second."""

    def __init__(self, *, max_connections: int = 100, max_silent: int = 4) -> None:
        self.guard = ConnectionGuard(max_connections, max_silent=max_silent)
        self.now = 1000.0
        self.open: dict[int, Accepted] = {}
        self._inode = 0

    def connect(self, port: int, host: str = "10.0.0.1") -> int:
        self._inode += 1
        self.open[self._inode] = Accepted(self._inode, self._inode, PORT, (host, port))
        return self._inode

    def call(self, inode: int, holder: str = "a", most: int = 100) -> None:
        host, port = self.open[inode].address
        self.guard.called(f"ipv4:{host}:{port}", holder, most, self.now)

    def look(self, seconds: float = 1.0) -> list[int]:
        """What is closed in a look, so many seconds later."""
        self.now += seconds
        closed = [one.inode for one in self.guard.judge(list(self.open.values()), self.now - 0.01, self.now)]
        for inode in closed:
            del self.open[inode]
        return closed


def test_a_connection_without_a_call_is_closed_after_a_minute() -> None:
    listener = Listener()
    silent, caller = listener.connect(1), listener.connect(2)
    listener.call(caller)
    assert listener.look() == []
    assert listener.look(SILENT_SECONDS - 0.5) == []
    assert listener.look() == [silent]
    assert listener.look(10 * SILENT_SECONDS) == []


def test_a_connection_with_calls_for_everybody_is_closed_a_minute_after_the_last() -> None:
    listener = Listener(max_silent=2)
    probe = listener.connect(1)
    for _ in range(3):
        listener.guard.called_publicly("ipv4:10.0.0.1:1", 1, listener.now)
        assert listener.look(2 * SILENT_SECONDS) == [], "a call is open"
        listener.guard.called_publicly("ipv4:10.0.0.1:1", -1, listener.now)
        assert listener.look(SILENT_SECONDS - 1) == []
    assert listener.look() == [probe]
    again = listener.connect(1)
    listener.guard.called_publicly("ipv4:10.0.0.1:1", 1, listener.now)
    listener.look()
    for port in (2, 3):
        listener.connect(port)
    assert listener.look() == [again], "it has no more right to a place than others"


def test_a_late_call_keeps_a_connection() -> None:
    listener = Listener()
    late = listener.connect(1)
    listener.look()
    listener.look(SILENT_SECONDS - 5)
    listener.call(late)
    assert listener.look(2 * SILENT_SECONDS) == []


def test_beyond_their_budget_the_oldest_silent_connections_make_room() -> None:
    listener = Listener(max_silent=4)
    caller = listener.connect(1)
    listener.call(caller)
    first = [listener.connect(port) for port in range(2, 5)]
    assert listener.look() == []
    second = [listener.connect(port) for port in range(5, 8)]
    assert listener.look() == first[:2]
    new = listener.connect(9)
    assert listener.look() == first[2:]
    assert set(listener.open) == {caller, *second, new}


def test_one_address_with_many_silent_connections_does_not_push_out_others() -> None:
    listener = Listener(max_silent=10)
    others = [listener.connect(port, f"10.0.1.{port}") for port in range(1, 4)]
    listener.look()
    flood = [listener.connect(port) for port in range(1, 101)]
    assert listener.look() == flood[:93]
    assert set(others) < set(listener.open)


def test_many_addresses_push_out_the_oldest() -> None:
    listener = Listener(max_silent=4)
    hosts = [listener.connect(1, f"10.0.1.{host}") for host in range(10)]
    assert listener.look() == hosts[:6]


def test_a_holder_has_no_more_connections_than_its_share_and_others_have_theirs() -> None:
    listener = Listener()
    mine = [listener.connect(port) for port in range(1, 4)]
    for inode in mine[:2]:
        listener.call(inode, "mine", 2)
    listener.call(mine[0], "mine", 2)
    with pytest.raises(ResourceExhausted, match="mine has 2 connections") as caught:
        listener.call(mine[2], "mine", 2)
    assert caught.value.reason == "CONNECTION_LIMIT"
    listener.call(listener.connect(9), "other", 2)
    listener.look()
    del listener.open[mine[0]]
    listener.look()
    listener.call(mine[2], "mine", 2)


def test_all_callers_together_have_no_more_than_the_limit() -> None:
    listener = Listener(max_connections=2)
    for number in range(2):
        listener.call(listener.connect(number + 1), str(number))
    with pytest.raises(ResourceExhausted, match="max-connections"):
        listener.call(listener.connect(3), "c")


def test_a_new_connection_from_a_known_address_is_silent() -> None:
    listener = Listener()
    inode = listener.connect(1)
    listener.call(inode)
    listener.look()
    del listener.open[inode]
    again = listener.connect(1)
    listener.look()
    assert listener.look(SILENT_SECONDS) == [again]


def test_a_call_that_came_while_connections_were_looked_for_is_not_forgotten() -> None:
    listener = Listener()
    inode = listener.connect(1)
    listener.call(inode)
    assert listener.guard.judge([], listener.now - 1, listener.now) == []
    assert listener.look(SILENT_SECONDS * 2) == []


def test_connections_of_withdrawn_holders_are_silent_from_then_on() -> None:
    listener = Listener()
    gone, kept = listener.connect(1), listener.connect(2)
    listener.call(gone, "gone")
    listener.call(kept, "kept")
    listener.look()
    listener.guard.withdraw({"kept"})
    listener.look()
    assert listener.look(SILENT_SECONDS) == [gone]


def test_callers_by_a_socket_are_not_counted() -> None:
    guard = ConnectionGuard(1)
    for _ in range(3):
        guard.called("unix:", "a", 1, 0.0)


@pytest.mark.parametrize(
    ("limit", "share"), [(16384, 4096), (1000, 250), (256, 64), (100, 64), (64, 64), (30, 30), (4, 4), (1, 1)]
)
def test_a_share_is_a_quarter_unless_that_is_little(limit: int, share: int) -> None:
    assert share_of(limit) == share


def test_shares_are_given_back() -> None:
    shares = Shares()
    assert [shares.take("a", 2) for _ in range(3)] == [True, True, False]
    assert shares.take("b", 2)
    shares.give("a")
    assert shares.take("a", 2)
    assert (shares.held("a"), shares.held("b"), shares.held("c")) == (2, 1, 0)


@pytest.mark.parametrize(
    ("descriptors", "connections"), [(1 << 20, 18432), (20000, 18432), (4096, 3072), (1024, 512), (256, 128)]
)
def test_connections_leave_descriptors_for_the_rest(descriptors: int, connections: int) -> None:
    assert process.most_connections(18432, descriptors) == connections


@pytest.mark.parametrize(
    ("caller", "holder"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("http:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::/64"),
        ("ipv6:[2001:db8::ffff:1]:5000", "2001:db8::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5000", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("unix:", ""),
        ("unix:/run/socket", ""),
        ("", ""),
    ],
)
def test_an_address_holds_a_share_and_a_socket_none(caller: str, holder: str) -> None:
    assert address_holder(caller) == holder
