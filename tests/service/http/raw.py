"""Raw HTTP over sockets, for what no HTTP client would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 30.0  # ends a broken test


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Open a connection to the service."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        yield connection


def head(method: str, path: str, *headers: str) -> bytes:
    """Write the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post_json(*headers: str) -> bytes:
    """Write the head of an order in JSON."""
    return head("POST", "/generate", "Content-Type: application/json", *headers)


def read_until_closed(connection: socket.socket) -> bytes:
    """Read what is sent until the other side closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def status(answer: bytes) -> int:
    """Return the status of an answer."""
    return int(answer.split(b" ", 2)[1])
