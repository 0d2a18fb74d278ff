"""What is counted for Prometheus. Every label comes from a closed set; no name of a caller's is ever a label."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from normserver.contributions import Outcome
from normserver.errors import ServiceError

# Otherwise each counter and histogram has another series, of when it began; process_start_time_seconds tells of that.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_OF_DEVICE = {
    "memory_bytes": "Memory of the device that is in use, by whomever.",
    "memory_limit_bytes": "Memory that the device has.",
    "busy_ratio": "The share of its time that the device computed, for whomever, as its driver tells: 0 to 1.",
}
_LIMITS = {
    "calls_limit": "Unary calls that may be under way: --max-calls.",
    "streams_limit": "Streams that may be open: --max-streams.",
    "held_limit_bytes": "What requests and replies of unary calls may hold: --max-memory-bytes.",
    "stream_held_limit_bytes": "What messages of streams may hold: --max-stream-bytes.",
    "http_connections_limit": "Connections to --http that there may be: --http-max-connections.",
    "compute_queue_limit": "Normalizations that may wait for the device or run on it: --max-queued-normalizations.",
    "pending_contributions_limit": "Contributions that may wait for a commit: --max-pending-contributions.",
}
HTTP_REJECTED = (
    "connection_limit",
    "address_limit",
    "request_timeout",
    "tls_handshake",
    "slow_reader",
    "descriptors",
)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.build = Info("normstats_build", "The release that runs.", registry=registry)
        self.calls = Counter(
            "normstats_calls", "Calls that ended, by method and gRPC code.", ["method", "code"], registry=registry
        )
        self.refused = Counter(
            "normstats_calls_refused",
            "Calls that ended with RESOURCE_EXHAUSTED, by method and their error's reason: the limit or quota.",
            ["method", "reason"],
            registry=registry,
        )
        self.call_seconds = Histogram(
            "normstats_call_seconds",
            "How long calls took, by method; streams: how long they were open.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.phase_seconds = Histogram(
            "normstats_phase_seconds",
            "What calls' time went into: queue (waiting for the device or for a commit), compute, commit; by method.",
            ["method", "phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.messages = Counter(
            "normstats_stream_messages",
            "Messages answered on NormalizeManyStream, each of which is a call of its own otherwise.",
            registry=registry,
        )
        self.received_bytes = Counter(
            "normstats_received_bytes", "Bytes of tensors received to be normalized.", registry=registry
        )
        self.sent_bytes = Counter("normstats_sent_bytes", "Bytes of normalized tensors sent.", registry=registry)
        self.shared_bytes = Gauge(
            "normstats_shared_memory_bytes", "Memory that is lent to callers on this machine.", registry=registry
        )
        self.compute_queue = Gauge(
            "normstats_compute_queue_size", "Normalizations that wait for the device or run on it.", registry=registry
        )
        self.compute_seconds = Histogram(
            "normstats_compute_seconds",
            "How long normalizations took on the device.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute_threads = Gauge(
            "normstats_compute_threads",
            "Threads that compute: the rate of normstats_compute_seconds_sum over this is how busy they are.",
            registry=registry,
        )
        self.kernels = Gauge(
            "normstats_kernels",
            "The CPU's kernels by state: compiled (in use), pending (the reference kernels do their work until they "
            "are compiled), failed (likewise, until the next start).",
            ["state"],
            registry=registry,
        )
        self.launch_size = Histogram(
            "normstats_launch_tasks",
            "How many tasks the device did at once, as they were of one kind.",
            buckets=_SIZES,
            registry=registry,
        )
        self.contributions = Counter(
            "normstats_contributions",
            "Contributions by what became of them: merged, duplicate or refused.",
            ["outcome"],
            registry=registry,
        )
        self.pending = Gauge(
            "normstats_pending_contributions",
            "Contributions that wait for a commit, or for the end of theirs.",
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "normstats_commit_seconds",
            "How long commits took, their sync to disk included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.commit_size = Histogram(
            "normstats_commit_contributions",
            "How many contributions one commit took in.",
            buckets=_SIZES,
            registry=registry,
        )
        self.last_commit = Gauge(
            "normstats_last_commit_timestamp_seconds", "When the last commit was done.", registry=registry
        )
        self.last_commit_at = 0.0
        self.rounds = Counter(
            "normstats_rounds",
            "Synchronized rounds by how they ended: completed or failed.",
            ["outcome"],
            registry=registry,
        )
        self.round_seconds = Histogram(
            "normstats_round_seconds",
            "How long rounds waited for their members, from the first part to the last or to the deadline.",
            ["outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.open_rounds = Gauge("normstats_open_rounds", "Rounds that wait for members.", registry=registry)
        self.producers = Gauge(
            "normstats_active_producers", "Producers that contributed within a minute.", registry=registry
        )
        self.store_up = Gauge("normstats_store_up", "1 while the store can be used.", registry=registry)
        self.calls_under_way = Gauge(
            "normstats_calls_under_way", "Unary calls that were let in and have not ended.", registry=registry
        )
        self.held_bytes = Gauge(
            "normstats_held_bytes", "Bytes of requests and replies of unary calls in memory.", registry=registry
        )
        self.stream_bytes = Gauge(
            "normstats_stream_held_bytes",
            "Bytes that messages of streams hold until they are answered.",
            registry=registry,
        )
        self.connections_cut = Counter(
            "normstats_connections_cut",
            "Connections that were closed, as nobody read their answers and others needed the memory.",
            registry=registry,
        )
        self.http_connections = Gauge("normstats_http_connections", "Connections to --http.", registry=registry)
        self.http_connections_rejected = Counter(
            "normstats_http_connections_rejected",
            "Connections to --http that were closed before their time: connection_limit and address_limit (the "
            "settings; one was closed for another), request_timeout, tls_handshake, slow_reader, descriptors (none was "
            "left).",
            ["reason"],
            registry=registry,
        )
        self.silent_closed = Counter(
            "normstats_silent_connections_closed",
            "Connections that were closed as they had made no call, for a minute or while too many others had not.",
            registry=registry,
        )
        self.files_current = Gauge(
            "normstats_files_current",
            "1 while certificates or credentials are as their files say; 0 where those cannot be read any more.",
            ["files"],
            registry=registry,
        )
        self.streams = Gauge(
            "normstats_open_streams",
            "Streams that are open, by method; those of WatchRunningStats are watchers.",
            ["method"],
            registry=registry,
        )
        self.memory_limit = Gauge(
            "normstats_memory_limit_bytes",
            "What this process may have resident: its container's limit, or all that the machine has.",
            registry=registry,
        )
        self.memory_limit.set_function(memory_limit_bytes)
        self.device = Info("normstats_device", "Where the server computes.", registry=registry)
        # What has not happened yet is 0, not absent: of a series that begins with its first count that one is not seen.
        for outcome in ("merged", "duplicate", "refused"):
            self.contributions.labels(outcome)
        for outcome in ("completed", "failed"):
            self.rounds.labels(outcome)
        for reason in HTTP_REJECTED:
            self.http_connections_rejected.labels(reason)
        for state in ("compiled", "pending", "failed"):
            self.kernels.labels(state)
        self._of_device: list[Gauge] = []
        self._phases: dict[tuple[str, str], Histogram] = {}

    def phase(self, method: str, phase: str, seconds: float) -> None:
        """Count a phase of a call."""
        key = method, phase
        if key not in self._phases:
            self._phases[key] = self.phase_seconds.labels(method, phase)
        self._phases[key].observe(seconds)

    def round_closed(self, seconds: float, *, complete: bool) -> None:
        """Count a round that waits no longer."""
        outcome = "completed" if complete else "failed"
        self.open_rounds.dec()
        self.rounds.labels(outcome).inc()
        self.round_seconds.labels(outcome).observe(seconds)

    def watch_device(self, name: str, kind: str, reading: Mapping[str, Callable[[], float]]) -> None:
        """Say what the server computes on, and what is read of it: memory_bytes, memory_limit_bytes, busy_ratio."""
        self.device.info({"name": name, "device": kind})
        for what, read in reading.items():
            gauge = Gauge(f"normstats_device_{what}", _OF_DEVICE[what], registry=self.registry)
            gauge.set_function(read)
            self._of_device.append(gauge)

    def tell_limits(self, **limits: int) -> None:
        """Say what the settings allow for: calls_limit, streams_limit, held_limit_bytes, stream_held_limit_bytes,
        http_connections_limit, compute_queue_limit, pending_contributions_limit.
        """
        for name, limit in limits.items():
            Gauge(f"normstats_{name}", _LIMITS[name], registry=self.registry).set(limit)

    def commit_done(self, seconds: float, outcomes: Sequence[Outcome | ServiceError]) -> None:
        """Count one commit and what became of its contributions."""
        self.commit_seconds.observe(seconds)
        self.commit_size.observe(len(outcomes))
        self.last_commit_at = time.time()
        self.last_commit.set(self.last_commit_at)
        for outcome in outcomes:
            self.contributions.labels(_kind(outcome)).inc()


def _kind(outcome: Outcome | ServiceError) -> str:
    if isinstance(outcome, ServiceError):
        return "refused"
    return "duplicate" if outcome.duplicate else "merged"


def memory_limit_bytes(membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of what this process's control groups, version 1 or 2, and the machine have."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, file = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        # A container sees its own group as the root, and may still be told where that lies among all of the machine's.
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            try:
                limits.append(int((root / str(folder).lstrip("/") / file).read_text()))
            except (OSError, ValueError):  # there is none, or it is "max"
                continue
    return min(limits)
