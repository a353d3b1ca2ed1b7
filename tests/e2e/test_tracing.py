"""Traces, as a collector receives them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import synthetic_jobs
from tests.service import Service


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The address of a collector, and the spans that it has received."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()


def test_a_job_is_one_trace_from_its_request_to_its_steps(tmp_path: Path, collector: tuple[str, list[Any]]) -> None:
    address, spans = collector
    variables = {
        "SAE_SERVICE_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }  # fmt: skip
    service = Service(tmp_path, **variables)
    try:
        job = service.ended(service.client.submit(synthetic_jobs.job(20)))
    finally:
        assert service.interrupt() == 0
    assert job.status == "succeeded"
    (attempt,) = (span for span in spans if span.name == "attempt")
    mine = [span for span in spans if span.trace_id == attempt.trace_id]
    (request,) = (span for span in mine if span.name == "POST request")
    assert attempt.parent_span_id == request.span_id
    below = {span.name for span in mine if span.parent_span_id == attempt.span_id}
    assert {"load", "fill", "steps", "evaluate", "checkpoint"} <= below


def test_nothing_is_imported_for_traces_that_are_off() -> None:
    code = """
import sys
from sae_service import tracing
with tracing.span("a"):
    assert tracing.current() is None
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
