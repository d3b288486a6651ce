"""Limit connections: how many are open, and how long each may make no progress.

uvicorn closes idle connections only between two requests. This protocol also closes connections that send
the head of a request too slowly or stop reading a response, and refuses requests with two lengths. What it
refuses before there is a request for the app, it answers with the JSON of all errors.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from jobs.errors import LongCatError
from service.errors import Busy, HeadTooSlow, MalformedRequest, status_of

_BACKLOG = 128  # connections accepted at once, before older ones can be closed for them
_LONG_STALL_S = 10.0  # after this time without reading, a client makes way for others
_CHECK_S = 1.0  # how often it is checked that a client reads
_MAX_UNSENT_BYTES = 64 << 10  # in the kernel, which may take nothing more until 1 MB of a full buffer is read
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_MAX_REASON_CHARACTERS = 100  # the reason may quote what the client sent


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a process's connections."""

    max_connections: int = 1000
    head_timeout_s: float = 10.0
    send_timeout_s: float = 120.0


def server_options(limits: ConnectionLimits) -> dict[str, Any]:
    """Return the options for `uvicorn.Config`."""
    return {
        "http": partial(BoundedProtocol, limits=limits),
        "ws": "none",
        "backlog": _BACKLOG,
        "server_header": False,
        "log_config": None,
    }


class BoundedProtocol(H11Protocol):
    """A connection that is closed when it makes no progress for too long."""

    conn: _StrictConnection

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._stalled_since: float | None = None
        self._pending_bytes = 0
        self.conn = _StrictConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or 16 << 10)

    @property
    def is_waiting(self) -> bool:
        """Check that the connection waits for a request."""
        return self._head_timer is not None and not self.transport.is_closing()

    @property
    def waiting_until(self) -> float:
        """Return the deadline for the head of the next request, on the event loop's clock."""
        return self._head_timer.when() if self._head_timer else float("inf")

    @property
    def stalled_s(self) -> float:
        """Return how long the client has read nothing although a response waits for it, in seconds."""
        return 0.0 if self._stalled_since is None else self.loop.time() - self._stalled_since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request. If there are too many connections, close one that makes no progress."""
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family in {socket.AF_INET, socket.AF_INET6}:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            self._refuse(Busy("all connections of this process are in use; try again soon"))
        self._set_timers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        for timer in (self._head_timer, self._send_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle received data."""
        super().handle_events()
        self._set_timers()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._set_timers()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which no further request has arrived."""
        super().timeout_keep_alive_handler()
        self._set_timers()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP. If a response was sent already, just close the connection."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._refuse(MalformedRequest(f"the request is not valid HTTP: {self.conn.reason}"))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Watch a client that does not read the response fast enough."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Continue sending the response."""
        super().resume_writing()
        if self._send_timer and not self.transport.is_closing():
            self._send_timer.cancel()
            self._send_timer = self._stalled_since = None

    def _set_timers(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        is_responding = cycle is not None and not cycle.response_complete
        if self._head_timer and (is_responding or self.transport.is_closing()):
            self._head_timer.cancel()
            self._head_timer = None
        if self.transport.is_closing():
            self._watch_sending()
        elif not is_responding and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._close_idle)

    def _close_idle(self) -> None:
        has_partial_head = self.conn.our_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if has_partial_head:
            self._refuse(HeadTooSlow(f"the head must arrive within {self._limits.head_timeout_s:g} s"))
        self.transport.close()
        self._set_timers()

    def _refuse(self, error: LongCatError) -> None:
        """Send an error for which there is no request, and close the connection."""
        body = json.dumps({"error": {"code": error.code, "message": error.message}}).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        status = status_of(type(error))
        head = h11.Response(status_code=status, headers=[*headers.items()], reason=STATUS_PHRASES[status])
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _watch_sending(self) -> None:
        """Abort the connection if the client reads nothing from the buffer in time."""
        if self._send_timer is None:
            self._note_progress()
            self._check_later()

    def _check_sending(self) -> None:
        if self.transport.get_write_buffer_size() < self._pending_bytes:
            self._note_progress()
        if self.stalled_s < self._limits.send_timeout_s:
            self._check_later()
        else:
            self.transport.abort()

    def _note_progress(self) -> None:
        self._stalled_since = self.loop.time()
        self._pending_bytes = self.transport.get_write_buffer_size()

    def _check_later(self) -> None:
        delay_s = min(_CHECK_S, self._limits.send_timeout_s)
        self._send_timer = self.loop.call_later(delay_s, self._check_sending)

    def _make_room(self) -> bool:
        """Close another connection: the one that has waited longest for a request, or has stalled longest.

        Return False if none waits, and none has stalled for long.
        """
        others = [each for each in self.connections if isinstance(each, BoundedProtocol) and each is not self]
        if waiting := [other for other in others if other.is_waiting]:
            min(waiting, key=lambda other: other.waiting_until).transport.abort()
            return True
        longest_stalled = max(others, key=lambda other: other.stalled_s, default=None)
        if longest_stalled is None or longest_stalled.stalled_s < _LONG_STALL_S:
            return False
        longest_stalled.transport.abort()
        return True


class _StrictConnection(h11.Connection):
    """Refuse requests with two lengths, and read the absolute form of targets.

    A proxy in front might read two lengths differently (request smuggling). The absolute form, such as
    `GET http://host/jobs`, is meant for proxies, but every server must accept it (RFC 9112, section 3.2.2).

    Attributes:
        reason: why the last request was refused.
    """

    reason = ""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            event = super().next_event()
            return _checked(event) if isinstance(event, h11.Request) else event
        except h11.RemoteProtocolError as error:
            self.reason = str(error)[:_MAX_REASON_CHARACTERS]
            raise


def _checked(request: h11.Request) -> h11.Request:
    """Return a request with the origin form of its target. Raises RemoteProtocolError."""
    names = {name for name, _ in request.headers}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
    if not request.target.lower().startswith((b"http:", b"https:")):
        return request
    parts = _ABSOLUTE_FORM.fullmatch(request.target)
    if parts is None:
        raise h11.RemoteProtocolError("illegal host in the request target")
    host, path, query = parts.groups(b"")
    others = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=(path or b"/") + query,
        headers=[(b"host", host), *others],
        http_version=request.http_version,
    )
