"""Fetching an input from a URL for a client, into a file. Called by `service.inputs.inputs`.

Only http and https, only to public addresses (`service.inputs.addresses`), again after each redirect; with
limits on time and size. It knows nothing of what the bytes mean.
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
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from typing_extensions import Buffer

from service.errors import UnusableInput
from service.inputs.addresses import NotPublic, resolve

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK_BYTES = 1 << 16
_MAX_ADDRESSES = 3


@cache
def default_tls() -> ssl.SSLContext:
    """Return the TLS context of this process: making one reads all root certificates, which takes 50 ms."""
    return ssl.create_default_context()


@dataclass(frozen=True)
class FetchLimits:
    """How long a fetch may take and how far it may go."""

    connect_timeout_s: float = 5.0
    head_timeout_s: float = 15.0
    total_timeout_s: float = 60.0
    max_redirects: int = 5
    allow_private: bool = False
    tls: ssl.SSLContext = field(default_factory=default_tls)


def fetch(url: str, target: BinaryIO, max_bytes: int, limits: FetchLimits) -> None:
    """Write what `url` answers into `target`. Raises UnusableInput, and then `target` is not to be used."""
    deadline = time.monotonic() + limits.total_timeout_s
    for _ in range(limits.max_redirects + 1):
        head_deadline = min(deadline, time.monotonic() + limits.head_timeout_s)
        with open_connection(checked(url), limits, head_deadline) as connection:
            response = _get(connection, url)
            connection.stream.deadline = deadline
            if response.status not in _REDIRECTS:
                return _save(response, target, max_bytes)
            url = urljoin(url, response.getheader("Location") or "")
    raise UnusableInput(f"redirects more than {limits.max_redirects} times")


def checked(url: str) -> SplitResult:
    """The parts of a URL that may be asked. Raises UnusableInput."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise UnusableInput("is not a URL") from error
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UnusableInput("must be an http or https URL in ASCII, with a host")
    if parts.username is not None or parts.password is not None:
        raise UnusableInput("must not carry a user name or password")
    return parts


@contextmanager
def open_connection(parts: SplitResult, limits: FetchLimits, deadline: float) -> Iterator[Connection]:
    """A connection to a judged address, which no wait holds beyond the deadline. Raises UnusableInput."""
    try:
        with _connect(parts, limits) as stream:
            yield Connection(parts, _Stream(stream, deadline))
    except NotPublic as error:
        raise UnusableInput(str(error)) from error
    except TimeoutError as error:
        raise UnusableInput("the host is too slow") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnusableInput("the host cannot be reached, or does not speak HTTP") from error


def _connect(parts: SplitResult, limits: FetchLimits) -> socket.socket:
    assert parts.hostname
    port = parts.port or _PORTS[parts.scheme]
    addresses = resolve(parts.hostname, port, allow_private=limits.allow_private)
    plain = _first_open(addresses[:_MAX_ADDRESSES], port, limits.connect_timeout_s)
    if parts.scheme == "http":
        return plain
    with plain:  # the wrapped socket takes its place, unless the handshake fails
        return limits.tls.wrap_socket(plain, server_hostname=parts.hostname)


def _first_open(addresses: list[str], port: int, timeout_s: float) -> socket.socket:
    problem: OSError = ConnectionRefusedError()
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            problem = error
    raise problem


def _get(connection: Connection, url: str) -> http.client.HTTPResponse:
    connection.request("GET", target_of(urlsplit(url)), headers={"User-Agent": "longcat-video"})
    return connection.getresponse()


def target_of(parts: SplitResult) -> str:
    """What to ask the host for."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _save(response: http.client.HTTPResponse, target: BinaryIO, max_bytes: int) -> None:
    if response.status != 200:
        raise UnusableInput(f"the host answered {response.status}")
    declared_bytes = response.length
    size_bytes = 0
    while chunk := response.read(_CHUNK_BYTES):
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            raise UnusableInput(f"is larger than {max_bytes} bytes")
        target.write(chunk)
    if declared_bytes not in {None, size_bytes}:
        raise UnusableInput("the host broke off")


class Connection(http.client.HTTPConnection):
    """A connection over a stream that is open already, to an address that was judged."""

    def __init__(self, parts: SplitResult, stream: _Stream) -> None:
        self.default_port = _PORTS[parts.scheme]
        super().__init__(parts.hostname or "", parts.port)
        self.sock = self.stream = stream


class _Stream(io.RawIOBase):
    """A socket whose every wait ends at the deadline, so that a dripping host cannot hold us."""

    def __init__(self, stream: socket.socket, deadline: float) -> None:
        self._stream = stream
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._wait_at_most()
        self._stream.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        self._wait_at_most()
        return self._stream.recv_into(buffer)

    def close(self) -> None:
        """Nothing: http.client closes its end before the answer is read; who opened it closes the socket."""

    def _wait_at_most(self) -> None:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the deadline passed")
        self._stream.settimeout(remaining_s)
