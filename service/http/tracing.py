"""A span for every POST, where the service was told to trace. ASGI middleware of `service.app`.

The span stands below the client's own, if the request names one; the job that is ordered carries it on, so
that waiting and running stand below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.logs import about, current_names
from service.http.answers import WatchedSend, route_of

if TYPE_CHECKING:
    from jobs.otel import Tracing


class TracedRequests:
    """Begins a span with the request and ends it with the answer."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; `traceparent` is that of the span then."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        names = current_names()
        known = {"http.request.method": "POST", "longcat.request_id": names["request_id"]}
        span = self._tracing.begin("POST", names.get("traceparent"), known, serves=True)
        watched = WatchedSend(send)
        try:
            with about({"traceparent": span.traceparent}):
                await self._app(scope, receive, watched)
        finally:
            route = route_of(scope)
            span.rename(f"POST {route}")
            span.note({"http.route": route, "http.response.status_code": watched.status})
            span.end(failed=watched.status >= 500)
