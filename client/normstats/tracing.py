"""The trace that a call is part of, for the server to go on with: W3C's traceparent, of OpenTelemetry's current span.

Nothing to set: whoever traces has imported OpenTelemetry. Whoever has not pays a look into a dictionary.
"""

from __future__ import annotations

import sys

from normstats.security import Metadata


def is_traced() -> bool:
    """Whether what is done now is part of a trace."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and trace.get_current_span().get_span_context().is_valid


def metadata() -> Metadata:
    """What a call brings so that its server goes on with the trace; nothing outside one."""
    if not is_traced():
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())
