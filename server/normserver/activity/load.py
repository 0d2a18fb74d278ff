"""The server's load, a second at a time: what its metrics have grown by."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

from prometheus_client import Metric

from normserver.metrics import Metrics

_PAGE_BYTES = resource.getpagesize()
_STATM = Path("/proc/self/statm")


class Load(NamedTuple):
    """What the server did in one second, which ended at `at` (seconds since the epoch), and what it held then."""

    at: float
    calls_per_second: float
    errors_per_second: float
    contributions_per_second: float
    duplicates_per_second: float
    received_bytes_per_second: float
    sent_bytes_per_second: float
    call_p50_seconds: float
    call_p99_seconds: float
    queue_p99_seconds: float
    commit_p50_seconds: float
    commit_p99_seconds: float
    calls_under_way: int
    queued_normalizations: int
    pending_contributions: int
    open_streams: int
    watchers: int
    open_rounds: int
    active_producers: int
    compute_busy_ratio: float
    cpu_cores: float
    resident_bytes: int


class _Collected(Protocol):
    def collect(self) -> Iterable[Metric]: ...


Labels = tuple[tuple[str, str], ...]
# By their names, and there by their labels.
Samples = Mapping[str, Mapping[Labels, float]]


class Sampler:
    """Reads the metrics, and tells what they have grown by since it read them last."""

    def __init__(self, metrics: Metrics, streams: Set[str], clock: Callable[[], float] = time.time) -> None:
        """`streams`: the methods that are no unary calls, and whose time tells nothing."""
        self._metrics = metrics
        self._streams = streams
        self._clock = clock
        self._monotonic, self._cpu_seconds, self._before = time.monotonic(), time.process_time(), self._read()

    def sample(self) -> Load:
        """The load since the last sample."""
        monotonic, cpu_seconds, after = time.monotonic(), time.process_time(), self._read()
        seconds = max(monotonic - self._monotonic, 1e-3)
        grown = {name: _grown(self._before.get(name, {}), samples) for name, samples in after.items()}

        def total(name: str, **labels: str) -> float:
            return _total(grown, name, labels)

        def now(name: str, **labels: str) -> int:
            return int(_total(after, name, labels))

        calls = grown.get("normstats_call_seconds_bucket", {})
        unary = {"unary": {key: value for key, value in calls.items() if dict(key)["method"] not in self._streams}}
        ended, served = total("normstats_calls_total"), total("normstats_calls_total", code="OK")
        gone = total("normstats_calls_total", code="CANCELLED")
        threads = max(now("normstats_compute_threads"), 1)
        load = Load(
            at=self._clock(),
            calls_per_second=(ended + total("normstats_stream_messages_total")) / seconds,
            errors_per_second=(ended - served - gone) / seconds,
            contributions_per_second=total("normstats_contributions_total", outcome="merged") / seconds,
            duplicates_per_second=total("normstats_contributions_total", outcome="duplicate") / seconds,
            received_bytes_per_second=total("normstats_received_bytes_total") / seconds,
            sent_bytes_per_second=total("normstats_sent_bytes_total") / seconds,
            call_p50_seconds=quantile(0.5, _buckets(unary, "unary")),
            call_p99_seconds=quantile(0.99, _buckets(unary, "unary")),
            queue_p99_seconds=quantile(0.99, _buckets(grown, "normstats_phase_seconds_bucket", phase="queue")),
            commit_p50_seconds=quantile(0.5, _buckets(grown, "normstats_commit_seconds_bucket")),
            commit_p99_seconds=quantile(0.99, _buckets(grown, "normstats_commit_seconds_bucket")),
            calls_under_way=now("normstats_calls_under_way"),
            queued_normalizations=now("normstats_compute_queue_size"),
            pending_contributions=now("normstats_pending_contributions"),
            open_streams=now("normstats_open_streams"),
            watchers=now("normstats_open_streams", method="WatchRunningStats"),
            open_rounds=now("normstats_open_rounds"),
            active_producers=now("normstats_active_producers"),
            compute_busy_ratio=min(total("normstats_compute_seconds_sum") / seconds / threads, 1.0),
            cpu_cores=(cpu_seconds - self._cpu_seconds) / seconds,
            resident_bytes=int(_STATM.read_text().split()[1]) * _PAGE_BYTES,
        )
        self._monotonic, self._cpu_seconds, self._before = monotonic, cpu_seconds, after
        return load

    def _read(self) -> Samples:
        """Those metrics alone that a load is made of: reading all takes five times as long."""
        metrics = self._metrics
        read: tuple[_Collected, ...] = (
            metrics.calls,
            metrics.call_seconds,
            metrics.phase_seconds,
            metrics.messages,
            metrics.received_bytes,
            metrics.sent_bytes,
            metrics.compute_queue,
            metrics.compute_seconds,
            metrics.compute_threads,
            metrics.contributions,
            metrics.pending,
            metrics.commit_seconds,
            metrics.open_rounds,
            metrics.producers,
            metrics.calls_under_way,
            metrics.streams,
        )
        found: dict[str, dict[Labels, float]] = {}
        for metric in read:
            for family in metric.collect():
                for sample in family.samples:
                    found.setdefault(sample.name, {})[tuple(sample.labels.items())] = sample.value
        return found


def quantile(fraction: float, buckets: Mapping[float, float]) -> float:
    """How long so large a part took, or less, by a histogram's counts, each of all up to its bound; as Prometheus.

    0 if nothing was counted; the last finite bound if it is beyond that.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return 0.0
    wanted = fraction * buckets[bounds[-1]]
    for below, bound in pairwise([0.0, *bounds]):
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return below
            before = buckets.get(below, 0.0)
            inside = buckets[bound] - before
            return below + (bound - below) * ((wanted - before) / inside if inside else 0.0)
    return bounds[-1]


def _total(samples: Samples, name: str, labels: Mapping[str, str]) -> float:
    wanted = set(labels.items())
    return sum(value for told, value in samples.get(name, {}).items() if wanted.issubset(told))


def _grown(before: Mapping[Labels, float], after: Mapping[Labels, float]) -> dict[Labels, float]:
    return {labels: value - before.get(labels, 0.0) for labels, value in after.items()}


def _buckets(samples: Samples, name: str, **labels: str) -> dict[float, float]:
    wanted = set(labels.items())
    found: dict[float, float] = {}
    for told, value in samples.get(name, {}).items():
        if wanted.issubset(told):
            bound = float(dict(told)["le"])
            found[bound] = found.get(bound, 0.0) + value
    return found
