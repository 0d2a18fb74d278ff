"""What a stream has taken in and the server has not acknowledged: the whole state after each event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from normstats.unacknowledged import Unacknowledged


def taken_in(window: int, count: int) -> Unacknowledged:
    updates = Unacknowledged(window)
    for _ in range(count):
        updates.take_in([])
    return updates


def sent(updates: Unacknowledged) -> list[int]:
    def each() -> Iterator[int]:
        while (update := updates.next_to_send()) is not None:
            yield update.sequence

    return list(each())


def test_sequences_count_from_1_in_the_order_of_arrival() -> None:
    updates = taken_in(10, 3)
    assert sent(updates) == [1, 2, 3]
    assert sent(updates) == []
    updates.take_in([])
    assert sent(updates) == [4]


def test_the_window_is_full_until_something_is_acknowledged() -> None:
    updates = taken_in(2, 2)
    assert updates.is_full
    updates.acknowledge(1)
    assert (updates.is_full, updates.is_empty, updates.acknowledged) == (False, False, 1)
    updates.acknowledge(2)
    assert (updates.is_full, updates.is_empty, updates.acknowledged) == (False, True, 2)


def test_after_a_break_what_is_not_acknowledged_is_sent_again() -> None:
    updates = taken_in(10, 5)
    sent(updates)
    updates.acknowledge(2)
    updates.reconnect()
    updates.acknowledge(3)  # the new connection's first reply: this much had arrived
    assert sent(updates) == [4, 5]


def test_an_acknowledgement_never_goes_back() -> None:
    updates = taken_in(10, 5)
    sent(updates)
    updates.acknowledge(4)
    updates.acknowledge(0)
    assert updates.acknowledged == 4
    updates.take_in([])
    assert sent(updates) == [6]


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        Unacknowledged(0)
