"""Raw HTTP over sockets, for requests that no HTTP client would send."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 120.0  # ends a broken test


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Open a connection to the service."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        yield connection


def head(method: str, path: str, *headers: str) -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post_json(*headers: str) -> bytes:
    """Return the head of a submission in JSON."""
    return head("POST", "/generate", "Content-Type: application/json", *headers)


def read_until_closed(connection: socket.socket) -> bytes:
    """Read until the other side closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def drip_until_answered(connection: socket.socket, byte: bytes) -> bytes:
    """Send one byte at a time until a response arrives, and return its beginning."""
    connection.settimeout(0.02)
    for _ in range(1000):
        try:
            return connection.recv(1000)
        except TimeoutError:
            connection.sendall(byte)
    raise AssertionError("the connection stays open without an answer")


def read_answer(connection: socket.socket) -> bytes:
    """Read one response with a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    start = received.index(b"\r\n\r\n") + 4
    lengths = re.findall(rb"content-length: (\d+)", received[:start].lower())
    while len(received) < start + int(lengths[0]):
        received += _some(connection)
    return received


def _some(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    assert chunk, "the connection was closed"
    return chunk


def status(answer: bytes) -> int:
    """Return the status of a response."""
    return int(answer.split(b" ", 2)[1])


def error_code(answer: bytes) -> str:
    """Return the code of an error in JSON that is all of a response's body."""
    header, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in header.lower()
    assert f"content-length: {len(body)}".encode() in header.lower()
    error = json.loads(body)["error"]
    assert error["message"]
    return str(error["code"])
