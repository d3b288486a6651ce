"""ASGI middleware that records a span for every POST, where tracing is configured.

The span is a child of the client's span if the request names one. The job carries it on, so the spans of
its time in the queue and of its run are children of this span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.logs import about, current_names
from service.http.response_status import StatusRecorder, route_template

if TYPE_CHECKING:
    from jobs.otel import Tracing


class TracedRequests:
    """Start a span with the request and end it with the response."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the span's `traceparent` in the log context."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        names = current_names()
        known = {"http.request.method": "POST", "longcat.request_id": names["request_id"]}
        span = self._tracing.begin("POST", names.get("traceparent"), known, serves=True)
        recorder = StatusRecorder(send)
        try:
            with about({"traceparent": span.traceparent}):
                await self._app(scope, receive, recorder)
        finally:
            route = route_template(scope)
            span.rename(f"POST {route}")
            span.note({"http.route": route, "http.response.status_code": recorder.status})
            span.end(failed=recorder.status >= 500)
