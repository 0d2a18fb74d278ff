"""What a call's time went into: waiting, computing, committing. Counted, and told to whoever traces the call."""

from __future__ import annotations

from normserver.calls import Call
from normserver.metrics import Metrics

QUEUE, COMPUTE, COMMIT = "queue", "compute", "commit"

# The method of what no call asked for.
_NO_CALL = "none"


class Phases:
    """Notes phases. Times are those of time.perf_counter."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def note(self, call: Call | None, phase: str, began: float, ended: float) -> None:
        """A phase of a call is over."""
        if call is None:
            self._metrics.phase(_NO_CALL, phase, ended - began)
            return
        self._metrics.phase(call.method, phase, ended - began)
        if call.trace is not None:
            call.trace.phase(phase, began, ended)
