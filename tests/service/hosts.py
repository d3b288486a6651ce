"""Small HTTP servers that answer as a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def host(answer: Answer) -> Iterator[str]:
    """Serve every GET, POST and DELETE with `answer` and yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            answer(self)

        def do_DELETE(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sending(content: bytes, status: int = 200) -> Answer:
    """Return a handler that sends this content with its length."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def redirecting(location: str, status: int = 302) -> Answer:
    """Return a handler that redirects."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@dataclass
class Tarpit:
    """A server that accepts connections and never answers."""

    url: str
    connections: list[socket.socket] = field(default_factory=list)


@contextmanager
def tarpit(drip: bytes = b"") -> Iterator[Tarpit]:
    """Run a tarpit that sends `drip` once per connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = Tarpit(f"http://127.0.0.1:{server.getsockname()[1]}/hook")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    host.connections.append(connection)
                    connection.sendall(drip)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield host
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in host.connections:
                connection.close()
