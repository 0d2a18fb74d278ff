"""Traces: a call's span is in its caller's trace, and has its phases within."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

import normstats
from tests.server_process import ServerProcess

METHOD = "normstats.v1.NormalizationService/"
X = np.ones((4, 3), np.float32)
# Spans of this process: sent nowhere, but in traces of their own.
TRACER = TracerProvider().get_tracer("tests")


class Collector:
    """Takes what is sent by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                    attributes = {one.key: one.value.string_value for one in sent.resource.attributes}
                    collector.resources.append(attributes)
                    collector.spans += [span for scope in sent.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace_id: int, name: str) -> Any:
        """The span of that name in that trace, once it is there."""
        for _ in range(500):
            for span in list(self.spans):
                if int.from_bytes(span.trace_id, "big") == trace_id and span.name == name:
                    return span
            time.sleep(0.01)
        raise TimeoutError(f"no {name} among {[span.name for span in self.spans]}")

    def within(self, span: Any) -> dict[str, Any]:
        """The spans within one, by their names."""
        return {one.name: one for one in self.spans if one.parent_span_id == span.span_id}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as environment:
        port = collector.server.server_address[1]
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        server = ServerProcess(tmp_path_factory.mktemp("traced"), "--traces").start()
    yield server
    server.stop()


@pytest.fixture
def client(traced: ServerProcess) -> Iterator[normstats.Client]:
    with normstats.connect(traced.target) as one:
        yield one


def attribute(span: Any, key: str) -> Any:
    (value,) = [one.value for one in span.attributes if one.key == key]
    return value


def test_an_update_is_a_span_in_its_callers_trace(collector: Collector, client: normstats.Client, name: str) -> None:
    obs = client.create(name, normstats.Standardize(3))
    with TRACER.start_as_current_span("training") as mine:
        obs.update(X)
    span = collector.of(mine.get_span_context().trace_id, METHOD + "UpdateRunningStats")
    assert int.from_bytes(span.parent_span_id, "big") == mine.get_span_context().span_id
    assert attribute(span, "rpc.system").string_value == "grpc"
    assert attribute(span, "rpc.grpc.status_code").int_value == 0
    phases = collector.within(span)
    assert set(phases) == {"queue", "commit"}
    queue, commit = phases["queue"], phases["commit"]
    assert span.start_time_unix_nano <= queue.start_time_unix_nano
    assert queue.end_time_unix_nano == pytest.approx(commit.start_time_unix_nano, abs=1e6)
    assert commit.end_time_unix_nano <= span.end_time_unix_nano + 1e6


@pytest.mark.parametrize("rows", [4, 8000, 500_000])
def test_a_normalize_is_too_however_it_travels(collector: Collector, client: normstats.Client, rows: int) -> None:
    with TRACER.start_as_current_span("inference") as mine:
        client.normalize(np.ones((rows, 3), np.float32), normstats.LayerNorm(3))
    method = "NormalizeStream" if rows == 500_000 else "Normalize"
    span = collector.of(mine.get_span_context().trace_id, METHOD + method)
    assert set(collector.within(span)) == {"queue", "compute"}


async def test_the_asyncio_client_brings_its_trace_too(collector: Collector, traced: ServerProcess) -> None:
    async with normstats.aio.connect(traced.target) as client:
        with TRACER.start_as_current_span("inference") as mine:
            await client.normalize(X, normstats.LayerNorm(3))
    assert collector.of(mine.get_span_context().trace_id, METHOD + "Normalize").name


def test_an_error_is_told(collector: Collector, client: normstats.Client) -> None:
    with TRACER.start_as_current_span("wrong") as mine, pytest.raises(normstats.NotFound):
        client.get("nothing/here")
    span = collector.of(mine.get_span_context().trace_id, METHOD + "GetNormalizer")
    assert attribute(span, "rpc.grpc.status_code").int_value == 5
    assert span.status.code == 0, "a caller's mistake is no fault of the server"


def test_a_call_of_no_trace_begins_one(collector: Collector, client: normstats.Client) -> None:
    assert not trace.get_current_span().get_span_context().is_valid
    client.device()
    for _ in range(500):
        if found := [span for span in collector.spans if span.name == METHOD + "GetDevice"]:
            break
        time.sleep(0.01)
    assert found[0].parent_span_id == b""
    assert collector.resources[0]["service.name"] == "normstats"


def test_what_was_traced_is_sent_when_the_server_stops(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_address[1]}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "staging")
    server = ServerProcess(tmp_path, "--traces").start()
    with normstats.connect(server.target) as one, TRACER.start_as_current_span("last") as mine:
        one.device()
    assert server.terminate() == 0
    assert collector.of(mine.get_span_context().trace_id, METHOD + "GetDevice").name
    assert collector.resources[-1]["service.name"] == "staging"


def test_who_does_not_trace_does_not_import_it() -> None:
    code = "import sys, normstats, normserver.app; print([name for name in sys.modules if 'opentelemetry' in name])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.strip() == "[]"
