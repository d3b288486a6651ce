"""Protection against web pages that use the service through a visitor's browser. ASGI middleware.

Without API keys anybody who reaches the service may use it, and a page that is open in a browser on this
machine reaches it. Requests are refused before anything of their body is read.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import LongCatError
from service.errors import CrossSiteRequest, HostNotAllowed, refused
from service.http.origins import SAFE_METHODS, Sender
from service.keys.authentication import Authenticator

_LIVENESS = "/livez"  # tells nothing, and must not wait for Redis
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-site",
    "X-Content-Type-Options": "nosniff",
}


class BrowserGuard:
    """Refuses what foreign pages send, and keeps them from embedding what the service answers."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator
        self._origins = authenticator.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 or 421."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._check(scope)
        except LongCatError as error:
            await refused(Request(scope), error)(scope, receive, protected)
        else:
            await self._app(scope, receive, protected)

    async def _check(self, scope: Scope) -> None:
        """Raise CrossSiteRequest, HostNotAllowed, Unavailable."""
        headers = Headers(scope=scope)
        if scope["method"] not in SAFE_METHODS and self._origins.sender_of(headers) is Sender.FOREIGN_PAGE:
            raise CrossSiteRequest("a page of another origin may not change anything here")
        if scope["path"] == _LIVENESS or self._origins.is_listed(headers):
            return
        if not await run_in_threadpool(self._authenticator.requires_key):
            raise HostNotAllowed(
                "this service asks for no API key, so it answers only under its own names: "
                "add this one to LONGCAT_ALLOWED_HOSTS, or set LONGCAT_PUBLIC_URL"
            )
