"""Serve a folder over HTTP with faults, and count what is sent."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one response.

    Attributes:
        status: an error to answer with.
        headers: more headers.
        cut_after_bytes: the length after which the connection is closed.
        hold_after_bytes: the length after which the server waits for `released`.
        content: what the file contains instead.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    hold_after_bytes: int | None = None
    content: bytes | None = None


@dataclass(frozen=True)
class Request:
    path: str
    start: int
    end: int | None  # None for the end of the file


class FileServer:
    """A server of one folder. `fault` decides about each request, from its number among those of its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has_ranges = True
        self.fault: Callable[[Request, int], Fault | None] = lambda _request, _number: None
        self.released = threading.Event()
        self.requests: list[Request] = []
        self.sent_bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.url = ""

    def requests_for(self, path: str) -> list[Request]:
        return [each for each in self.requests if each.path == path]

    def forget(self) -> None:
        """Forget the requests of a part of the test that has ended."""
        with self._lock:
            self.requests.clear()
            self.sent_bytes.clear()

    def count(self, path: str, size_bytes: int) -> None:
        with self._lock:
            self.sent_bytes[path] += size_bytes

    def note(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            number = len(self.requests_for(request.path)) - 1
        return self.fault(request, number) or Fault()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: FileServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files

    def handle_error(self, *_: object) -> None:
        """Do nothing: a fetch that is killed or fails cuts its connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        files = self.server.files
        path = self.path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        end = int(wanted[2]) + 1 if wanted and wanted[2] else None
        fault = files.note(Request(path, start, end))
        if fault.status or not (files.folder / path).is_file():
            self._answer(fault.status or 404, fault.headers, 0)
            return
        content = (files.folder / path).read_bytes() if fault.content is None else fault.content
        if not (wanted and files.has_ranges):
            self._answer(200, fault.headers, len(content))
            self._send(path, content, fault)
        elif body := content[start:end]:
            place = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}"}
            self._answer(206, {**place, **fault.headers}, len(body))
            self._send(path, body, fault)
        else:
            self._answer(416, {}, 0)

    def _answer(self, status: int, headers: dict[str, str], size_bytes: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size_bytes)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: str, body: bytes, fault: Fault) -> None:
        files = self.server.files
        for offset in range(0, len(body), BLOCK_BYTES):
            if fault.cut_after_bytes is not None and offset >= fault.cut_after_bytes:
                self.close_connection = True
                return
            if fault.hold_after_bytes is not None and offset >= fault.hold_after_bytes:
                files.released.wait(60)
            block = body[offset : offset + BLOCK_BYTES]
            files.count(path, len(block))  # before the client has the block, and may end the test
            try:
                self.wfile.write(block)
            except OSError:  # the client is gone
                files.count(path, -len(block))
                self.close_connection = True
                return

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""


@contextmanager
def serve_files(folder: Path) -> Iterator[FileServer]:
    files = FileServer(folder)
    with _Listener(files) as listening:
        files.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield files
        finally:
            files.released.set()
            listening.shutdown()
            thread.join()
