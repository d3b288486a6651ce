"""ASGI middleware that ends requests whose bodies arrive too slowly.

A body may take `timeout_s`, plus the time that its size needs at the minimum rate. Only the time that the
service spends waiting for the client counts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooSlow

RECEIVE_ERROR = "receive_error"
"""Key in the ASGI scope: the error for which the service stopped reading the body."""


class BodyDeadlines:
    """Report a body that is too slow as a disconnected client, and store the reason in the ASGI scope."""

    def __init__(self, app: ASGIApp, timeout_s: float, min_bytes_per_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._min_bytes_per_s = min_bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a deadline for its body."""
        if scope["type"] == "http":
            receive = _TimedReceive(scope, receive, self._timeout_s, self._min_bytes_per_s)
        await self._app(scope, receive, send)


@dataclass
class _TimedReceive:
    scope: Scope
    receive: Receive
    timeout_s: float
    min_bytes_per_s: float
    received_bytes: int = 0
    waited_s: float = 0.0
    is_complete: bool = False

    async def __call__(self) -> Message:
        """Wait for the next part of the body or, once the body is complete, for the client to disconnect."""
        if self.is_complete:
            return await self.receive()
        allowed_s = self.timeout_s + self.received_bytes / self.min_bytes_per_s - self.waited_s
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(min(self.timeout_s, max(0.0, allowed_s))):
                message = await self.receive()
        except TimeoutError:
            self.scope[RECEIVE_ERROR] = BodyTooSlow("the body arrives too slowly")
            return {"type": "http.disconnect"}
        self.waited_s += clock() - started
        self.received_bytes += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        return message
