"""Connect a process to Redis through a link that can be cut, as if the network between them were down.

What is sent while the link is cut arrives after it is mended, even from clients that have given up.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer

CHUNK_BYTES = 1 << 16


class RedisLink(ThreadingUnixStreamServer):
    """Listen on the socket `path`, and pass all connections on to the socket `target`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, target: Path) -> None:
        super().__init__(str(path), _Handler)
        self.path, self.target = path, target
        self._whole = threading.Event()
        self._whole.set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def wait_until_whole(self) -> None:
        self._whole.wait()

    def handle_error(self, *_: object) -> None:
        """Do nothing: Redis may be down."""


@contextmanager
def run_redis_link(path: Path, target: Path) -> Iterator[RedisLink]:
    """Run the link in threads."""
    with RedisLink(path, target) as link:
        thread = threading.Thread(target=link.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield link
        link.mend()
        link.shutdown()
        thread.join()


class _Handler(BaseRequestHandler):
    server: RedisLink
    request: socket.socket

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as redis:
            self.server.wait_until_whole()
            redis.connect(str(self.server.target))
            replies = threading.Thread(target=self._pass_on, args=(redis, self.request), daemon=True)
            replies.start()
            self._pass_on(self.request, redis)
            replies.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # one end has closed its connection
            while chunk := source.recv(CHUNK_BYTES):
                self.server.wait_until_whole()
                sink.sendall(chunk)
        self.server.wait_until_whole()
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
