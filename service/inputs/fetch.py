"""Fetch a URL for a client into a file, with limits on time and size.

Redirects are checked like the URL (`service.outgoing.connection`).
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from service.errors import UnusableInput
from service.outgoing.connection import Connection, OutgoingLimits, open_connection, parse_url, request_target

_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class FetchLimits(OutgoingLimits):
    """Limits of a fetch. `head_timeout_s` is how long each host may take to begin its response."""

    head_timeout_s: float = 15.0
    max_redirects: int = 5


def fetch(url: str, target: BinaryIO, max_bytes: int, limits: FetchLimits) -> None:
    """Write the content of `url` to `target`. Raise UnusableInput; `target` is incomplete then."""
    deadline = time.monotonic() + limits.total_timeout_s
    for _ in range(limits.max_redirects + 1):
        head_deadline = min(deadline, time.monotonic() + limits.head_timeout_s)
        with open_connection(parse_url(url), limits, head_deadline) as connection:
            response = _get(connection, url)
            connection.stream.deadline = deadline
            if response.status not in _REDIRECTS:
                return _save(response, target, max_bytes)
            url = urljoin(url, response.getheader("Location") or "")
    raise UnusableInput(f"redirects more than {limits.max_redirects} times")


def _get(connection: Connection, url: str) -> http.client.HTTPResponse:
    connection.request("GET", request_target(urlsplit(url)), headers={"User-Agent": "longcat-video"})
    return connection.getresponse()


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
        raise UnusableInput("the host closed the connection too early")
