"""Forward requests to an S3 server, and fail in the way that `health` names.

`down` closes connections, `failing`, `throttling` and `denying` answer errors, `bucketless` answers that the
bucket is missing, `slow` answers after clients have given up, `cutting` breaks off connections, and `late`
shows a file some seconds after it was stored.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep, time
from typing import Literal
from urllib.parse import urlsplit

Health = Literal["well", "down", "failing", "throttling", "denying", "bucketless", "slow", "cutting", "late"]

SLOW_S = 6.0  # longer than clients wait: what they gave up is stored all the same, late
LATE_S = 2.0
ERRORS: dict[Health, tuple[int, str]] = {
    "failing": (500, "InternalError"),
    "throttling": (503, "SlowDown"),
    "denying": (403, "AccessDenied"),
    "bucketless": (404, "NoSuchBucket"),
}
NOT_PASSED_ON = {"connection", "transfer-encoding", "expect", "keep-alive"}


class FaultyS3(ThreadingHTTPServer):
    """A proxy of the server at `upstream_url`.

    Attributes:
        stored_at: when a file was last stored.
        slowed: the requests that came while it was slow.
    """

    daemon_threads = True

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = str(urlsplit(upstream_url).netloc)
        self.health: Health = "well"
        self.stored_at = 0.0
        self.slowed: list[str] = []
        self.stored_at_by_path: dict[str, float] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Do nothing: broken connections are intended."""


@contextmanager
def faulty_s3(upstream_url: str) -> Iterator[FaultyS3]:
    """Run the proxy in threads."""
    with FaultyS3(upstream_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def log_message(self, *_: object) -> None:
        """Do nothing."""

    def do_GET(self) -> None:
        health = self.server.health
        if health == "down":
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if health in ERRORS:
            status, code = ERRORS[health]
            self._answer(status, [], f"<Error><Code>{code}</Code></Error>".encode())
            return
        if health == "slow":
            self.server.slowed.append(f"{self.command} {self.path}")
            sleep(SLOW_S)
        if health == "cutting" and body:
            self._break_off(body)
            return
        if health == "late" and self.command in {"GET", "HEAD"} and self._is_fresh():
            self._answer(404, [], b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self._pass_on(body, cut=health == "cutting")

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - so they are called

    def _is_fresh(self) -> bool:
        return time() - self.server.stored_at_by_path.get(self.path, 0.0) < LATE_S

    def _upstream(self, body: bytes) -> http.client.HTTPConnection:
        """Return a connection on which the request was sent, with this body or a part of it."""
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in NOT_PASSED_ON:
                connection.putheader(name, value)
        connection.endheaders(body)
        return connection

    def _break_off(self, body: bytes) -> None:
        with suppress(OSError):
            self._upstream(body[: len(body) // 2]).close()
        self.close_connection = True

    def _pass_on(self, body: bytes, *, cut: bool) -> None:
        connection = self._upstream(body)
        reply = connection.getresponse()
        content, headers = reply.read(), reply.getheaders()
        connection.close()
        if self.command == "PUT" and reply.status == 200:
            self.server.stored_at = self.server.stored_at_by_path[self.path] = time()
        self._answer(reply.status, headers, content[: len(content) // 2] if cut else content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in NOT_PASSED_ON:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            announced = next((int(v) for n, v in headers if n.lower() == "content-length"), len(content))
            self.close_connection = len(content) < announced
