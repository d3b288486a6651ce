"""Bounds on connections: how many there are, and how long they may wait without getting on.

uvicorn itself closes connections only between two requests. This protocol also ends connections that send
the head of a request too slowly or take nothing of an answer, and refuses requests with two lengths.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_ANSWER = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_BACKLOG = 128  # connections accepted at a time, before any can be closed to make room
_TOO_SLOW = _ANSWER % b"408 Request Timeout"
_TOO_MANY = _ANSWER % b"503 Service Unavailable"


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections are open, and how long each may take for a step. Times in seconds."""

    max_connections: int = 1000
    head_timeout_s: float = 10.0
    send_timeout_s: float = 120.0


def server_options(limits: ConnectionLimits) -> dict[str, Any]:
    """Return the options with which uvicorn has to run."""
    return {
        "http": partial(BoundedProtocol, limits=limits),
        "ws": "none",
        "backlog": _BACKLOG,
        "server_header": False,
        "log_config": None,
    }


class BoundedProtocol(H11Protocol):
    """A connection that does not stay open without a request that gets on."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self.conn = _StrictConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or 16 << 10)

    @property
    def is_waiting(self) -> bool:
        """Check that no request is being answered on this connection."""
        return self._head_timer is not None and not self.transport.is_closing()

    @property
    def waiting_until(self) -> float:
        """Return when the head of the next request must be complete, by the loop's clock."""
        return self._head_timer.when() if self._head_timer else float("inf")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; close the connection that waits longest if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            self.transport.write(_TOO_MANY)
            self.transport.close()
        self._set_timers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._head_timer, self._send_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what was received."""
        super().handle_events()
        self._set_timers()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._set_timers()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which no further request came."""
        super().timeout_keep_alive_handler()
        self._set_timers()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; a client that was answered already is told nothing more."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Wait for the client to take something of the answer."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        if self._send_timer and not self.transport.is_closing():
            self._send_timer.cancel()
            self._send_timer = None

    def _set_timers(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if self._head_timer and (is_answering or self.transport.is_closing()):
            self._head_timer.cancel()
            self._head_timer = None
        if self.transport.is_closing():
            self._watch_sending()
        elif not is_answering and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        is_head_begun = self.conn.our_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if is_head_begun:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        self._set_timers()

    def _watch_sending(self) -> None:
        """Abort the connection if the client takes nothing from the buffer in time."""
        if self._send_timer is None:
            pending_bytes = self.transport.get_write_buffer_size()
            self._send_timer = self.loop.call_later(
                self._limits.send_timeout_s, self._check_sending, pending_bytes
            )

    def _check_sending(self, pending_bytes: int) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size() < pending_bytes:
            self._watch_sending()
        else:
            self.transport.abort()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request; False if none waits."""
        others = [other for other in self.connections if isinstance(other, BoundedProtocol)]
        waiting = [other for other in others if other is not self and other.is_waiting]
        if waiting:
            min(waiting, key=lambda other: other.waiting_until).transport.abort()
        return bool(waiting)


class _StrictConnection(h11.Connection):
    """Refuses a request with two lengths, about which a proxy before the service may think otherwise."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        return event
