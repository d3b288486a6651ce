"""Observe responses in ASGI middleware, for metrics and traces."""

from __future__ import annotations

from starlette.types import Message, Scope, Send


class StatusRecorder:
    """Pass a response on and record its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500  # without a response from the app, the outermost middleware answers 500

    async def __call__(self, message: Message) -> None:
        """Pass a part of the response on."""
        self.status = message.get("status", self.status)
        await self._send(message)


def route_template(scope: Scope) -> str:
    """Return the path template of the matched route, `none` without one. Call it after the app has run."""
    path: str = getattr(scope.get("route"), "path", "none")
    return path
