"""ASGI middleware that records an OpenTelemetry span for every POST, where tracing is configured.

The span is a child of the client's span if the request names one. The job carries it on, so the spans of
its time in the queue and of its run are children of this span.
"""

from __future__ import annotations

from opentelemetry.trace import SpanKind, StatusCode, TracerProvider
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.logs import about, current_names
from jobs.tracing import TRACER, context_of, traceparent_of
from service.http.response_status import StatusRecorder, route_template


class TracedRequests:
    """Start a span with the request and end it with the response."""

    def __init__(self, app: ASGIApp, tracing: TracerProvider) -> None:
        self._app = app
        self._tracer = tracing.get_tracer(TRACER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the span's `traceparent` in the log context."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        names = current_names()
        span = self._tracer.start_span(
            "POST",
            context_of(names.get("traceparent")),
            SpanKind.SERVER,
            {"http.request.method": "POST", "longcat.request_id": names["request_id"]},
        )
        traceparent = traceparent_of(span)
        recorder = StatusRecorder(send)
        try:
            with about({"traceparent": traceparent} if traceparent else {}):
                await self._app(scope, receive, recorder)
        finally:
            route = route_template(scope)
            span.update_name(f"POST {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": recorder.status})
            if recorder.status >= 500:
                span.set_status(StatusCode.ERROR)
            span.end()
