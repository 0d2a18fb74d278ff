"""Memory of results, used again."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest
import torch

from normstats.arrays import Output, Payload
from normstats.kept import LEAST_BYTES, Kept
from normstats.wire.tensor import describe

MIB = 1 << 20


def address(array: np.ndarray) -> int:  # type: ignore[type-arg]
    place: int = array.__array_interface__["data"][0]
    return place


def test_what_nobody_looks_at_any_more_is_used_again() -> None:
    kept = Kept()
    first = kept.array(4 * MIB)
    place = address(first)
    assert first.flags.writeable
    second = kept.array(4 * MIB)
    assert address(second) != place
    del first
    assert kept.kept_bytes == 4 * MIB
    assert address(kept.array(4 * MIB)) == place


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.view(np.float32)[5:].reshape(-1, 1),
        lambda array: memoryview(array)[7:],
        lambda array: torch.from_numpy(array)[3:],
        lambda array: torch.frombuffer(array.data, dtype=torch.float32).reshape(2, -1)[1],
    ],
    ids=["numpy's", "a memoryview", "torch's of an array", "torch's of a buffer"],
)
def test_a_view_keeps_it(view: object) -> None:
    kept = Kept()
    array = kept.array(4 * MIB + 4)[: 4 * MIB - 16]
    seen = view(array)  # type: ignore[operator]
    del array
    gc.collect()
    assert kept.kept_bytes == 0
    del seen
    gc.collect()
    assert kept.kept_bytes == 4 * MIB + 4


def test_no_more_is_kept_than_is_said_and_the_newest_stays() -> None:
    kept = Kept(most_bytes=10 * MIB)
    several = [kept.array(size * MIB) for size in (4, 3, 5)]
    while several:
        del several[0]
    assert kept.kept_bytes == 8 * MIB
    large = kept.array(11 * MIB)
    del large
    assert kept.kept_bytes == 8 * MIB
    small = kept.array(LEAST_BYTES - 1)
    del small
    assert kept.kept_bytes == 8 * MIB


def test_it_is_given_back_when_it_was_not_used_for_a_while() -> None:
    kept = Kept(seconds=0.2)
    array = kept.array(4 * MIB)
    del array
    assert kept.kept_bytes == 4 * MIB
    for _ in range(3):
        time.sleep(0.1)
        array = kept.array(4 * MIB)
        del array
    assert kept.kept_bytes == 4 * MIB
    deadline = time.monotonic() + 10
    while kept.kept_bytes and time.monotonic() < deadline:
        time.sleep(0.02)
    assert kept.kept_bytes == 0


def test_threads_never_get_the_same() -> None:
    kept, wrong = Kept(), []

    def use(mark: int) -> None:
        for _ in range(300):
            array = kept.array(MIB)
            array[::4096] = mark
            time.sleep(0)
            if (array[::4096] != mark).any():
                wrong.append(mark)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept.kept_bytes <= 12 * MIB  # a thread that loses a race for one makes another


def test_results_are_each_their_own() -> None:
    payload = Payload("float32", np.zeros((512, 1024), np.float32))

    def result(value: float) -> np.ndarray:  # type: ignore[type-arg]
        output = Output(payload)
        output.add(describe("float32", payload.shape), np.full(payload.shape, value, np.float32).data.cast("B"))
        array: np.ndarray = output.value()  # type: ignore[type-arg]
        return array

    held = [result(value) for value in (1, 2, 3)]
    held.append(held.pop(0)[10:])
    held += [result(value) for value in (4, 5)]
    assert [float(one[0, 0]) for one in held] == [2, 3, 1, 4, 5]
    assert [float(one.min()) for one in held] == [float(one.max()) for one in held]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_its_own() -> None:
    kept = Kept()
    array = kept.array(4 * MIB)
    array[:] = 1
    child = os.fork()
    if not child:
        array[:] = 2
        del array
        again = kept.array(4 * MIB)
        again[:] = 3
        os._exit(0)
    os.waitpid(child, 0)
    assert array.min() == array.max() == 1
