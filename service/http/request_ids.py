"""ASGI middleware that gives every request an id, which the response and all log entries carry.

A client that traces requests across services sends W3C's `traceparent`, which is logged unchanged.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.logs import about

HEADER = "X-Request-Id"
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Use the client's `X-Request-Id` if it is valid, else generate one, and send it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. Its id is `scope["request_id"]`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requested = Headers(scope=scope).get(HEADER, "")
        request_id = requested if _VALID_ID.fullmatch(requested) else secrets.token_hex(8)
        scope["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with about({"request_id": request_id} | _trace(scope)):
            await self._app(scope, receive, send_with_id)


def _trace(scope: Scope) -> dict[str, str]:
    traceparent = Headers(scope=scope).get("traceparent", "")
    return {"traceparent": traceparent} if _TRACEPARENT.fullmatch(traceparent) else {}
