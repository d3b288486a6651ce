"""Connect to a host that a client names, and speak HTTP with it until a deadline.

Only http and https are allowed, and only public addresses (`service.outgoing.addresses`).
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import SplitResult, urlsplit

from typing_extensions import Buffer

from jobs.errors import DISK_FULL_ERRNOS
from service.errors import UnusableInput
from service.outgoing.addresses import HostNotPublic, resolve

_PORTS = {"http": 80, "https": 443}
_MAX_ADDRESSES = 3


@cache
def default_tls() -> ssl.SSLContext:
    """Return the TLS context of this process. Creating one takes 50 ms: it reads all root certificates."""
    return ssl.create_default_context()


@dataclass(frozen=True)
class OutgoingLimits:
    """Limits of a request to another host. `allow_private` permits addresses that are not public."""

    connect_timeout_s: float = 5.0
    total_timeout_s: float = 60.0
    allow_private: bool = False
    tls: ssl.SSLContext = field(default_factory=default_tls)


def parse_url(url: str) -> SplitResult:
    """Return the parts of a URL that the service may connect to. Raise UnusableInput."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise UnusableInput("is not a URL") from error
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UnusableInput("must be an http or https URL in ASCII, with a host")
    if parts.username is not None or parts.password is not None:
        raise UnusableInput("must not contain a user name or password")
    return parts


@contextmanager
def open_connection(parts: SplitResult, limits: OutgoingLimits, deadline: float) -> Iterator[Connection]:
    """Open a connection to a checked address. No operation on it waits beyond the deadline.

    Raises UnusableInput, also for errors while the connection is used, but passes on an OSError that says
    that the disk is full: it comes from the caller.
    """
    try:
        with _connect(parts, limits) as stream:
            yield Connection(parts, _Stream(stream, deadline))
    except HostNotPublic as error:
        raise UnusableInput(str(error)) from error
    except TimeoutError as error:
        raise UnusableInput("the host is too slow") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise
        raise UnusableInput("the host cannot be reached, or does not speak HTTP") from error


def _connect(parts: SplitResult, limits: OutgoingLimits) -> socket.socket:
    assert parts.hostname
    port = parts.port or _PORTS[parts.scheme]
    addresses = resolve(parts.hostname, port, allow_private=limits.allow_private)
    plain = _first_open(addresses[:_MAX_ADDRESSES], port, limits.connect_timeout_s)
    if parts.scheme == "http":
        return plain
    with plain:  # closes the plain socket if the handshake fails; else it is detached already
        return limits.tls.wrap_socket(plain, server_hostname=parts.hostname)


def _first_open(addresses: list[str], port: int, timeout_s: float) -> socket.socket:
    problem: OSError = ConnectionRefusedError()
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            problem = error
    raise problem


def request_target(parts: SplitResult) -> str:
    """Return the path and query for the request line."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class Connection(http.client.HTTPConnection):
    """An HTTP connection over a socket that is open already, to a checked address."""

    def __init__(self, parts: SplitResult, stream: _Stream) -> None:
        self.default_port = _PORTS[parts.scheme]
        super().__init__(parts.hostname or "", parts.port)
        self.sock = self.stream = stream


class _Stream(io.RawIOBase):
    """A socket on which every wait ends at the deadline, so a host that sends slowly cannot exceed it."""

    def __init__(self, stream: socket.socket, deadline: float) -> None:
        self._stream = stream
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._set_timeout()
        self._stream.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        self._set_timeout()
        return self._stream.recv_into(buffer)

    def close(self) -> None:
        """Do nothing: http.client closes before the response is read. `open_connection` closes the socket."""

    def _set_timeout(self) -> None:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the deadline passed")
        self._stream.settimeout(remaining_s)
