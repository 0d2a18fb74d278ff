"""The window of a producer: each sequence is counted once, whatever the order of arrival."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normserver.producers import WINDOW, Verdict, Window


def counted(*sequences: int) -> Window:
    window = Window()
    for sequence in sequences:
        window = window.add(sequence)
    return window


def test_a_producer_that_was_never_seen_may_begin_anywhere() -> None:
    assert [Window().verdict(sequence) for sequence in (1, 2, 5000, 2**63 - 1)] == [Verdict.NEW] * 4


def test_the_window_after_each_event() -> None:
    window = counted(1)
    assert window == Window(1, 0b1)
    window = window.add(3)
    assert window == Window(3, 0b101)
    window = window.add(2)
    assert window == Window(3, 0b111)
    window = window.add(3 + WINDOW - 1)
    assert window == Window(3 + WINDOW - 1, 1 | 1 << (WINDOW - 1)), "3 is the oldest that is still remembered"
    window = window.add(10 * WINDOW)
    assert window == Window(10 * WINDOW, 1)


@pytest.mark.parametrize(
    ("sequence", "verdict"),
    [(101, Verdict.NEW), (100, Verdict.SEEN), (99, Verdict.NEW), (1, Verdict.SEEN)],
)
def test_a_sequence_within_the_window_is_seen_or_new(sequence: int, verdict: Verdict) -> None:
    assert counted(1, 100).verdict(sequence) is verdict


def test_below_the_window_nobody_can_tell() -> None:
    window = counted(WINDOW + 1)
    assert window.verdict(2) is Verdict.NEW
    assert window.verdict(1) is Verdict.TOO_OLD


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=200))
def test_every_sequence_is_new_once(sequences: list[int]) -> None:
    window, once = Window(), set()
    for sequence in sequences:
        verdict = window.verdict(sequence)
        if verdict is Verdict.NEW:
            assert sequence not in once
            window = window.add(sequence)
            once.add(sequence)
        elif verdict is Verdict.SEEN:
            assert sequence in once
        else:
            assert sequence <= max(once) - WINDOW
    assert Window.from_bytes(window.highest, window.to_bytes()) == window


@pytest.mark.parametrize(
    ("sequences", "settled"),
    [
        ((), 0),
        ((1, 2, 3), 3),
        ((2,), 0),
        ((1, 2, 4, 5), 2),
        ((1, 3, 2), 3),
        (tuple(range(1, 3 * WINDOW)), 3 * WINDOW - 1),
        ((5000,), 5000 - WINDOW),
    ],
)
def test_what_is_settled_has_no_gap(sequences: tuple[int, ...], settled: int) -> None:
    assert counted(*sequences).settled == settled
