"""A span for every POST, where the service was told to trace. ASGI middleware of `service.app`.

The span stands below the client's own, if the request names one; the job that is ordered carries it on, so
that waiting and running stand below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.logs import about, current_names

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
        status = 500  # what is answered further out if nothing is answered here

        async def observed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            with about({"traceparent": span.traceparent}):
                await self._app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            span.rename(f"POST {route}")
            span.note({"http.route": route, "http.response.status_code": status})
            span.end(failed=status >= 500)
