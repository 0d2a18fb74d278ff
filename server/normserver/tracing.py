"""Traces, by OpenTelemetry: a span for each call, in its caller's trace (W3C), and spans for its phases within.

Where spans go and which are kept is said by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from google.rpc import code_pb2
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

# A stream may go on for days; of its phases the first are told.
_MOST_PHASES = 128
# Codes that are the server's fault, as OpenTelemetry's conventions have them.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Metadata = Iterable[tuple[str, str | bytes]]


class Tracing:
    """Traces calls, and sends the spans by OTLP over HTTP from a thread of its own."""

    def __init__(self, release: str) -> None:
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
        usual = Resource({SERVICE_NAME: "normstats", SERVICE_VERSION: release})
        told = Resource.create()
        named = told.attributes.get(SERVICE_NAME, "")
        known = told if not str(named).startswith("unknown_service") else told.merge(usual)
        self._provider = TracerProvider(resource=usual.merge(known))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("normstats", release)

    def begin(self, path: str, metadata: Metadata) -> CallTrace:
        """A call begins; its metadata says which trace it is part of."""
        service, _, method = path.removeprefix("/").rpartition("/")
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return CallTrace(self._tracer, span)

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


class CallTrace:
    """One call's span."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        self._phases = 0

    def phase(self, name: str, began: float, ended: float) -> None:
        """A span within it; times are those of time.perf_counter."""
        self._phases += 1
        if self._phases > _MOST_PHASES:
            return
        ahead = time.time() - time.perf_counter()
        span = self._tracer.start_span(name, context=self._context, start_time=_nanoseconds(began + ahead))
        span.end(_nanoseconds(ended + ahead))

    def end(self, code: str) -> None:
        """The call has ended, with this gRPC code."""
        self._span.set_attribute("rpc.grpc.status_code", code_pb2.Code.Value(code))
        if code in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, code))
        if self._phases > _MOST_PHASES:
            self._span.set_attribute("normstats.phases_left_out", self._phases - _MOST_PHASES)
        self._span.end()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
