"""Callers of every kind, who call until they are told to stop; and what must then be there."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np

import normstats
from normserver.published import MAX_AGE_SECONDS
from tests.faults.load import FEATURES, ROWS, SPEC, relative

Connect = Callable[[], normstats.Client]

# Threads of each kind.
UPDATERS, STREAMERS, READERS, SMALL, LARGE, WATCHERS = 4, 2, 2, 2, 2, 2
_BATCHES = 64
_PAUSE_SECONDS = 0.02
_JOIN_SECONDS = 60.0


class Mixed:
    """Threads, each with a client of its own, whose timeouts and retries are the defaults: they contribute, by unary
    calls and by streams, read, normalize small arrays and large ones, and watch. A context manager: leaving it stops
    them once all is durable.

    An error ends nobody: all are kept, in `errors`.
    """

    def __init__(self, connect: Connect, name: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.name = name
        self.errors: list[str] = []
        self.calls: Counter[str] = Counter()
        self.slowest: defaultdict[str, float] = defaultdict(float)
        self._connect = connect
        self._data = rng.normal(1000, 1, (UPDATERS + STREAMERS, _BATCHES, ROWS, FEATURES))
        self._taken = np.zeros(self._data.shape[:2], np.int64)
        self._arrays = {
            "small": rng.normal(1000, 1, (ROWS, FEATURES)).astype(np.float32),
            "large": rng.normal(1000, 1, (2**17, FEATURES)).astype(np.float32),
        }
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._last_version: int | None = None
        self._watchers = [self._thread("watch", self._watch) for _ in range(WATCHERS)]
        self._callers = [
            *(self._thread("update", self._update, index) for index in range(UPDATERS)),
            *(self._thread("stream", self._stream, UPDATERS + index) for index in range(STREAMERS)),
            *(self._thread("read", self._read) for _ in range(READERS)),
            *(self._thread("small", self._normalize, "small") for _ in range(SMALL)),
            *(self._thread("large", self._normalize, "large") for _ in range(LARGE)),
        ]

    def __enter__(self) -> Self:
        with self._connect() as client:
            client.create(self.name, SPEC)
            still = client.create(f"{self.name}/still", SPEC)
            still.update(self._data[0, 0])
            time.sleep(MAX_AGE_SECONDS)  # now all replicas know of it
            self._expected = {kind: still.normalize(x) for kind, x in self._arrays.items()}
        for thread in (*self._watchers, *self._callers):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if error is not None:
            return
        self._join(self._callers)
        with self._connect() as client:
            normalizer = client.get(self.name)
            self._last_version = normalizer.update(self._data[0, 0]).version + 1
            assert normalizer.update(self._data[0, 0]).version == self._last_version, "nobody else contributes any more"
            self._taken[0, 0] += 2
        self._join(self._watchers)

    def check(self, target: str) -> str:
        """Nobody saw an error, and the statistics are those of a float64 two-pass over all that was contributed;
        returns a sentence with the worst error.
        """
        assert not self.errors, f"{len(self.errors)} errors of {self.calls.total()} calls:\n" + "\n".join(self.errors)
        with normstats.connect(target) as client:
            found = client.get(self.name).stats()
        total = int(self._taken.sum())
        assert found.num_batches == total
        assert set(np.atleast_1d(found.count)) == {float(total * ROWS)}
        rows = self._data.reshape(-1, FEATURES)
        weights = np.repeat(self._taken.reshape(-1), ROWS)[:, None]
        mean = (weights * rows).sum(axis=0) / weights.sum()
        var = (weights * (rows - mean) ** 2).sum(axis=0) / weights.sum()
        worst = max(relative(found.mean, mean), relative(found.var, var))
        assert worst < 1e-12
        return f"0 errors in {self.calls.total()} calls; {total} of {total} batches, once; worst error {worst:.0e}"

    def told(self) -> str:
        """Calls of each kind, and the slowest of them."""
        return ", ".join(f"{count} {kind} (<= {self.slowest[kind]:.2f} s)" for kind, count in self.calls.items())

    def _update(self, client: normstats.Client, index: int) -> None:
        normalizer, turns = client.get(self.name), itertools.cycle(range(_BATCHES))

        def contribute() -> None:
            turn = next(turns)
            normalizer.update(self._data[index, turn])
            self._taken[index, turn] += 1

        self._again("update", contribute)

    def _stream(self, client: normstats.Client, index: int) -> None:
        turns = itertools.cycle(range(_BATCHES))
        with client.get(self.name).stream(window=16) as stream:

            def contribute() -> None:
                turn = next(turns)
                stream.update(self._data[index, turn])
                self._taken[index, turn] += 1

            self._again("stream", contribute)

    def _read(self, client: normstats.Client) -> None:
        normalizer = client.get(self.name)
        self._again("read", normalizer.stats)

    def _normalize(self, client: normstats.Client, kind: str) -> None:
        normalizer, x, expected = client.get(f"{self.name}/still"), self._arrays[kind], self._expected[kind]

        def normalize() -> None:
            assert np.array_equal(normalizer.normalize(x), expected), "every row, once, to the bit"

        self._again(kind, normalize)

    def _watch(self, client: normstats.Client) -> None:
        seen = 0
        for stats in client.get(self.name).watch():
            assert stats.version > seen, f"version {stats.version} after {seen}"
            seen = stats.version
            self._count("watch", 0.0)
            if self._last_version is not None and seen >= self._last_version:
                return

    def _again(self, kind: str, call: Callable[[], Any]) -> None:
        """Call again and again, until told to stop."""
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                call()
            except Exception as error:
                self._failed(kind, error)
            self._count(kind, time.monotonic() - started)
            time.sleep(_PAUSE_SECONDS)

    def _count(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.calls[kind] += 1
            self.slowest[kind] = max(self.slowest[kind], seconds)

    def _failed(self, kind: str, error: BaseException) -> None:
        self.errors.append(f"{time.strftime('%X')} {kind}: {type(error).__name__}: {error}; {error.__cause__!r}")

    def _thread(self, kind: str, work: Callable[..., None], *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                with self._connect() as client:
                    work(client, *arguments)
            except Exception as error:
                self._failed(kind, error)

        return threading.Thread(target=run, name=kind, daemon=True)

    def _join(self, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive()]
        assert not late, f"still under way: {late}; {self.errors}"
