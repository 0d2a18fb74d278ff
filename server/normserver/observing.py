"""What is noted of every call, however it came: counted, timed, a line in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from normserver.call_log import CallLog
from normserver.calls import Call, Trace
from normserver.errors import ServiceError
from normserver.metrics import Metrics

Metadata = Iterable[tuple[str, str | bytes]]
BeginTrace = Callable[[str, Metadata], Trace]


class Observed:
    """What a call ended with, so far as is known."""

    code = "CANCELLED"  # a handler that neither returns nor raises was cancelled
    reason = ""

    def failed(self, code: str, error: Exception) -> None:
        """An error ends it."""
        self.code = code
        self.reason = error.reason if isinstance(error, ServiceError) else ""


class Observer:
    """Notes calls."""

    def __init__(self, metrics: Metrics, lines_per_second: int, begin_trace: BeginTrace | None = None) -> None:
        self._metrics = metrics
        self._begin_trace = begin_trace
        self._log = CallLog(lines_per_second)

    def trace(self, call: Call, metadata: Metadata) -> Call:
        """A call begins: have it traced, where calls are. `observed` ends its trace."""
        if self._begin_trace is not None:
            call.trace = self._begin_trace(call.path, metadata)
        return call

    @contextmanager
    def observed(self, call: Call) -> Iterator[Observed]:
        """A call, from its beginning to its end; whoever catches its error says what it ended with."""
        observed, started = Observed(), time.perf_counter()
        open_streams = self._metrics.streams.labels(call.method) if call.streams else None
        try:
            if open_streams is not None:
                open_streams.inc()
            yield observed
            observed.code = "OK"
        finally:
            seconds = time.perf_counter() - started
            if open_streams is not None:
                open_streams.dec()
            self._metrics.call_seconds.labels(call.method).observe(seconds)
            self._metrics.calls.labels(call.method, observed.code).inc()
            if observed.code == "RESOURCE_EXHAUSTED":
                self._metrics.refused.labels(call.method, observed.reason).inc()
            self._log.note(call, observed.code, seconds)
            if call.trace is not None:
                call.trace.end(observed.code)
