"""A line for each call at level debug; of many, some."""

from __future__ import annotations

import logging
import time

from normserver.calls import Call

log = logging.getLogger("normserver.calls")


class CallLog:
    """Lines of calls, at most so many a second. A line tells how many were left out since the one before."""

    def __init__(self, most_per_second: int) -> None:
        self._most = most_per_second
        self._second = 0
        self._lines = self._left_out = 0

    def note(self, call: Call, code: str, seconds: float) -> None:
        """A call has ended."""
        if not log.isEnabledFor(logging.DEBUG):
            return
        if (second := int(time.monotonic())) != self._second:
            self._second, self._lines = second, 0
        if self._lines >= self._most:
            self._left_out += 1
            return
        self._lines += 1
        facts = {
            "method": call.method,
            "code": code,
            "seconds": round(seconds, 6),
            "received_bytes": call.received_bytes,
            "identity": "" if call.identity is None else call.identity.name,
            "caller": call.caller,
            "left_out": self._left_out,
        }
        self._left_out = 0
        log.debug("call", extra=facts)
