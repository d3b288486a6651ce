"""A receiver of webhooks that can be told to hang. It remembers which events it received."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time


class Receiver(ThreadingHTTPServer):
    """A receiver that answers 200 to every webhook, or accepts it and never answers while it `hangs`.

    `received` holds event and job, `received_at` the time of the last one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: set[tuple[str, str]] = set()
        self.received_at = 0.0
        self._answers = threading.Event()
        self._answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def hangs(self) -> bool:
        return not self._answers.is_set()

    @hangs.setter
    def hangs(self, hangs: bool) -> None:
        (self._answers.clear if hangs else self._answers.set)()

    def wait_until_it_answers(self) -> None:
        self._answers.wait()

    def handle_error(self, *_: object) -> None:
        """Do nothing: senders give up on a receiver that hangs."""


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    """Run the receiver in threads."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield receiver
        receiver.hangs = False
        receiver.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *_: object) -> None:
        """Do nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.hangs:
            self.server.wait_until_it_answers()
            return
        self.server.received.add((body["type"], body["data"]["id"]))
        self.server.received_at = time()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
