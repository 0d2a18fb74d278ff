"""What a stream has taken in and the server has not acknowledged: the whole state after each event."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from normstats.unacknowledged import IN_FLIGHT, MAX_BATCHES, MAX_BYTES, Unacknowledged, Update
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2


def contribution(value: float, *, size: int = 8, seconds: int | None = None) -> pb.Contribution:
    moments = resources_pb2.Moments(count=np.array([float(value)]).tobytes(), mean=bytes(size))
    one = pb.Contribution(normalizer="n", moments=pb.Contribution.MomentsOfBatches(batches=[moments]))
    if seconds is not None:
        one.observe_time.seconds = seconds
    return one


def taken_in(window: int, count: int) -> Unacknowledged:
    updates = Unacknowledged(window)
    for value in range(count):
        updates.take_in(contribution(value))
    return updates


def sent(updates: Unacknowledged) -> list[tuple[int, list[float]]]:
    """Sequences, and the batches under each."""

    def each() -> Iterator[Update]:
        while (update := updates.next_to_send()) is not None:
            yield update

    return [
        (update.sequence, [np.frombuffer(one.count)[0] for one in update.contribution.moments.batches])
        for update in each()
    ]


def test_the_first_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    updates = taken_in(100, 1)
    assert sent(updates) == [(1, [0])]
    updates.take_in(contribution(1))
    assert sent(updates) == [(2, [1])]
    assert IN_FLIGHT == 2
    for value in range(2, 7):
        updates.take_in(contribution(value))
    assert sent(updates) == []
    updates.acknowledge(1)
    assert sent(updates) == [(3, [2, 3, 4, 5, 6])]
    updates.acknowledge(3)
    assert (updates.is_empty, updates.acknowledged) == (True, 7)


def test_the_window_is_full_until_something_is_acknowledged() -> None:
    updates = taken_in(2, 2)
    assert updates.is_full
    assert sent(updates) == [(1, [0, 1])]
    updates.acknowledge(1)
    assert (updates.is_full, updates.is_empty, updates.acknowledged) == (False, True, 2)


def test_after_a_break_what_is_not_acknowledged_is_sent_again_under_the_same_sequences() -> None:
    updates = taken_in(10, 1)
    sent(updates)
    updates.take_in(contribution(1))
    sent(updates)
    updates.take_in(contribution(2))
    updates.reconnect()
    assert sent(updates) == [(1, [0]), (2, [1])]
    updates.reconnect()
    updates.acknowledge(1)  # the new connection's first reply: this much had arrived
    assert sent(updates) == [(2, [1]), (3, [2])]


def test_an_acknowledgement_never_goes_back() -> None:
    updates = taken_in(10, 3)
    sent(updates)
    updates.acknowledge(1)
    updates.acknowledge(0)
    assert updates.acknowledged == 3
    updates.take_in(contribution(9))
    assert sent(updates) == [(2, [9])]


def test_one_message_holds_so_many_and_so_much() -> None:
    updates = taken_in(10_000, 2 * MAX_BATCHES + 1)
    assert [len(batches) for _, batches in sent(updates)] == [MAX_BATCHES, MAX_BATCHES]
    large = Unacknowledged(10)
    for value in range(3):
        large.take_in(contribution(value, size=MAX_BYTES // 2))
    assert sent(large) == [(1, [0]), (2, [1])]


def test_what_was_observed_at_other_times_goes_apart() -> None:
    updates = Unacknowledged(10)
    for value, seconds in enumerate([5, 5, 6, None]):
        updates.take_in(contribution(value, seconds=seconds))
    assert sent(updates) == [(1, [0, 1]), (2, [2])]
    updates.acknowledge(2)
    assert sent(updates) == [(3, [3])]


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        Unacknowledged(0)
