"""A name for every request, so that an answer can be found in the log. ASGI middleware of `service.app`.

Whoever traces requests across services sends W3C's `traceparent`, which goes along unchanged.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.logs import about

HEADER = "X-Request-Id"
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_FIT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Takes the client's `X-Request-Id` if it is fit to be one, else makes one, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its id is `scope["request_id"]`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = scope["request_id"] = given if _FIT.fullmatch(given) else secrets.token_hex(8)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with about({"request_id": request_id} | _trace(scope)):
            await self._app(scope, receive, named)


def _trace(scope: Scope) -> dict[str, str]:
    given = Headers(scope=scope).get("traceparent", "")
    return {"traceparent": given} if _TRACEPARENT.fullmatch(given) else {}
