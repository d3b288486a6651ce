"""ASGI middleware that protects the service from web pages in a user's browser.

Without API keys, everybody who reaches the service may use it, and so may any page that is open in a browser
on this machine: by cross-site requests, or by DNS rebinding. Such requests are refused before their body is
read.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import LongCatError
from service.errors import CrossSiteRequest, HostNotAllowed
from service.http.error_handlers import respond_to_error
from service.http.origins import SAFE_METHODS, Initiator
from service.keys.authentication import Authenticator

_LIVENESS = "/livez"  # reveals nothing, and must not wait for Redis
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-site",
    "X-Content-Type-Options": "nosniff",
}


class BrowserGuard:
    """Refuse cross-site requests and foreign host names, and forbid other pages to embed responses."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator
        self._origins = authenticator.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 or 421."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._check(scope)
        except LongCatError as error:
            await respond_to_error(Request(scope), error)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    async def _check(self, scope: Scope) -> None:
        """Raise CrossSiteRequest, HostNotAllowed, Unavailable."""
        headers = Headers(scope=scope)
        changes_something = scope["method"] not in SAFE_METHODS
        if changes_something and self._origins.initiator(headers) is Initiator.CROSS_ORIGIN:
            raise CrossSiteRequest("a page of another origin may not change anything here")
        if scope["path"] == _LIVENESS or self._origins.is_allowed_host(headers):
            return
        if not await run_in_threadpool(self._authenticator.requires_key):
            raise HostNotAllowed(
                "this service asks for no API key, so it answers only under its own names: "
                "add this one to LONGCAT_ALLOWED_HOSTS, or set LONGCAT_PUBLIC_URL"
            )
