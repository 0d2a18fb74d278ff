"""Producers that contribute through the client, until all is durable; and the figures that must then be there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

import normstats

FEATURES, ROWS = 8, 16
SPEC = normstats.Standardize(FEATURES)


class Load:
    """`producers` threads, each with a client and `batches` batches of its own; half contribute by unary calls, half by
    streams. A context manager: leaving it waits for all of them.
    """

    def __init__(
        self, targets: Sequence[str], name: str, *, producers: int, batches: int, seed: int = 0, pause: float = 0.0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.data = rng.normal(1000, 1, (producers, batches, ROWS, FEATURES))
        self.name = name
        self._acknowledged = [0] * producers
        self._streams: dict[int, normstats.UpdateStream] = {}
        self.duplicates = 0
        self.errors: list[BaseException] = []
        self._targets = targets
        self._pause = pause
        self._threads = [
            threading.Thread(target=self._produce, args=(index,), name=f"producer {index}", daemon=True)
            for index in range(producers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.join(600)

    @property
    def total(self) -> int:
        """How many batches there are."""
        return self.data.shape[0] * self.data.shape[1]

    @property
    def acknowledged(self) -> list[int]:
        """How many are acknowledged, of each producer."""
        return [
            self._streams[index].acknowledged if index in self._streams else count
            for index, count in enumerate(self._acknowledged)
        ]

    @property
    def done(self) -> int:
        """How many are acknowledged."""
        return sum(self.acknowledged)

    def wait_for(self, share: float, timeout: float = 300.0) -> None:
        """Wait until so much of it is acknowledged."""
        wait_until(lambda: self.done >= share * self.total or not self.is_running, timeout)

    @property
    def is_running(self) -> bool:
        """Whether some producer is at work."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout: float) -> None:
        """Wait for all producers; raises the first error that one of them saw."""
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not self.is_running, f"not done: {self.acknowledged}"
        if self.errors:
            raise self.errors[0]

    def check(self, target: str) -> str:
        """Hold the statistics against a float64 two-pass over all data; returns a sentence with the worst error."""
        with normstats.connect(target) as client:
            found = client.get(self.name).stats()
        rows = self.data.reshape(-1, FEATURES)
        assert found.num_batches == self.total
        assert set(np.atleast_1d(found.count)) == {float(len(rows))}
        mean = rows.mean(axis=0)
        var = ((rows - mean) ** 2).mean(axis=0)
        worst = max(relative(found.mean, mean), relative(found.var, var))
        assert worst < 1e-12
        assert np.array_equal(found.min, rows.min(axis=0))
        assert np.array_equal(found.max, rows.max(axis=0))
        return f"{self.total} of {self.total} batches, once; worst error {worst:.0e}"

    def _produce(self, index: int) -> None:
        try:
            with normstats.connect(self._targets[index % len(self._targets)], timeout=120) as client:
                normalizer = client.create(self.name, SPEC, exist_ok=True)
                if index % 2:
                    self._stream(index, normalizer)
                else:
                    self._unary(index, normalizer)
        except BaseException as error:
            self.errors.append(error)

    def _unary(self, index: int, normalizer: normstats.Normalizer) -> None:
        for batch in self.data[index]:
            self.duplicates += normalizer.update(batch).duplicate
            self._acknowledged[index] += 1
            time.sleep(self._pause)

    def _stream(self, index: int, normalizer: normstats.Normalizer) -> None:
        with normalizer.stream(window=16) as self._streams[index]:
            for batch in self.data[index]:
                self._streams[index].update(batch)
                time.sleep(self._pause)


def relative(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    """The largest relative error."""
    return float((np.abs(found - expected) / np.abs(expected)).max())


def wait_until(holds: Callable[[], bool], timeout: float) -> float:
    """Wait until something holds; returns how many seconds that took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout, f"not within {timeout} s"
        time.sleep(0.01)
    return time.monotonic() - started
