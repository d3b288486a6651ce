"""Test that the proxy forwards requests, and each way in which it can fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from tests.chaos import s3_proxy
from tests.chaos.s3_proxy import FaultyS3, faulty_s3
from tests.waiting import wait_until


class Shelf(BaseHTTPRequestHandler):
    """An S3 server that keeps the files that are put, complete or not."""

    files: dict[str, bytes]

    def do_PUT(self):
        self.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_GET(self):
        self._answer(self.files[self.path])

    def _answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"/old": b"0123456789"}


@pytest.fixture
def s3(files) -> Iterator[FaultyS3]:
    handler = type("Handler", (Shelf,), {"files": files})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with faulty_s3(f"http://127.0.0.1:{server.server_port}") as s3:
            yield s3
        server.shutdown()
        thread.join()


@pytest.fixture
def http(s3) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=s3.url, timeout=60) as client:
        yield client


def test_healthy_proxy_forwards_requests(s3, http, files):
    assert http.put("/new", content=b"abc").status_code == 200
    assert files["/new"] == b"abc"
    assert http.get("/old").content == b"0123456789"
    assert s3.stored_at > 0


def test_proxy_that_is_down_does_not_answer(s3, http, files):
    s3.health = "down"
    with pytest.raises(httpx.TransportError):
        http.put("/new", content=b"abc")
    assert "/new" not in files


@pytest.mark.parametrize(
    ("health", "status"), [("failing", 500), ("throttling", 503), ("denying", 403), ("bucketless", 404)]
)
def test_refusing_proxy_answers_an_error_and_stores_nothing(s3, http, files, health, status):
    s3.health = health
    assert http.put("/new", content=b"abc").status_code == status
    assert "/new" not in files


def test_slow_proxy_stores_a_file_after_its_client_gave_up(s3, http, files, monkeypatch):
    waits = threading.Event()
    monkeypatch.setattr(s3_proxy, "sleep", lambda _: waits.wait(30))
    s3.health = "slow"
    with pytest.raises(httpx.ReadTimeout):
        http.put("/new", content=b"abc", timeout=0.2)
    wait_until(lambda: s3.slowed == ["PUT /new"])
    assert "/new" not in files
    waits.set()
    monkeypatch.undo()
    wait_until(lambda: "/new" in files)


def test_cutting_proxy_sends_a_reader_a_part_and_an_error(s3, http):
    s3.health = "cutting"
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/old")


def test_late_proxy_shows_a_file_some_time_after_it_was_stored(s3, http, monkeypatch):
    monkeypatch.setattr(s3_proxy, "LATE_S", 3600.0)
    s3.health = "late"
    assert http.put("/new", content=b"abc").status_code == 200
    assert http.get("/new").status_code == 404
    monkeypatch.setattr(s3_proxy, "LATE_S", 0.01)
    wait_until(lambda: http.get("/new").status_code == 200)
    assert http.get("/old").status_code == 200


def test_cutting_proxy_does_not_answer_a_writer(s3, http):
    s3.health = "cutting"
    with pytest.raises(httpx.TransportError):
        http.put("/new", content=b"0123456789")
    assert s3.stored_at == 0
