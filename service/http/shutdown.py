"""ASGI middleware that answers requests which the end of the process cuts off, such as slow uploads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import Unavailable
from service.http.error_handlers import respond_to_error


class ShutdownResponses:
    """Answer 503 to a request that is cancelled before its response has begun, while the service stops.

    uvicorn cancels what is still in progress some time after it was told to stop, and would answer 500.

    Args:
        app: the app to protect.
        is_stopping: returns whether the service was told to stop.
    """

    def __init__(self, app: ASGIApp, is_stopping: Callable[[], bool]) -> None:
        self._app = app
        self._is_stopping = is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if has_begun or not self._is_stopping():
                raise
            error = Unavailable("this process of the service is stopping; send the request again")
            response = respond_to_error(Request(scope), error)
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
