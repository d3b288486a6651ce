"""Note how a request was answered, for metrics and traces."""

from __future__ import annotations

from starlette.types import Message, Scope, Send


class WatchedSend:
    """Passes an answer on and keeps its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500  # what is answered further out if nothing is answered here

    async def __call__(self, message: Message) -> None:
        """Pass a part of it on."""
        self.status = message.get("status", self.status)
        await self._send(message)


def route_of(scope: Scope) -> str:
    """The template of the path, `none` where nothing is at it; known once the request was passed on."""
    path: str = getattr(scope.get("route"), "path", "none")
    return path
