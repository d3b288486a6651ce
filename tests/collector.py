"""A collector of OpenTelemetry traces, as small as it can be: what was sent to it, by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class Sent:
    """A span as it was received; times in ns."""

    process: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    began_ns: int
    ended_ns: int
    values: dict[str, Any]


@dataclass
class Collector:
    """Where spans are sent, and those that came."""

    url: str
    spans: list[Sent] = field(default_factory=list)

    def of(self, job_id: str) -> list[Sent]:
        """The spans of this job, in the order of their beginning."""
        found = [span for span in self.spans if span.values.get("longcat.job_id") == job_id]
        return sorted(found, key=lambda span: span.began_ns)

    def take(self, content: bytes) -> None:
        for sender in ExportTraceServiceRequest.FromString(content).resource_spans:
            process = _values(sender.resource.attributes)["service.name"]
            for scope in sender.scope_spans:
                self.spans += [_sent(process, span) for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _sent(process: str, span: Any) -> Sent:
    return Sent(
        process=process,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        values=_values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
