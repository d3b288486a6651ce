"""The proxy passes on what is asked for while it is well, and is ill in each way that it can be told."""

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
    """Keeps what is put, whole or not."""

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


def test_while_it_is_well_everything_is_passed_on(s3, files):
    assert httpx.put(f"{s3.url}/new", content=b"abc").status_code == 200
    assert files["/new"] == b"abc"
    assert httpx.get(f"{s3.url}/old").content == b"0123456789"
    assert s3.stored_at > 0


def test_while_it_is_down_there_is_no_answer(s3, files):
    s3.health = "down"
    with pytest.raises(httpx.TransportError):
        httpx.put(f"{s3.url}/new", content=b"abc")
    assert "/new" not in files


def test_while_it_fails_it_says_so_and_stores_nothing(s3, files):
    s3.health = "failing"
    assert httpx.put(f"{s3.url}/new", content=b"abc").status_code == 500
    assert "/new" not in files


def test_while_it_is_slow_a_file_is_stored_after_its_client_gave_up(s3, files, monkeypatch):
    waits = threading.Event()
    monkeypatch.setattr(s3_proxy, "sleep", lambda _: waits.wait(30))
    s3.health = "slow"
    with pytest.raises(httpx.ReadTimeout):
        httpx.put(f"{s3.url}/new", content=b"abc", timeout=0.2)
    assert "/new" not in files
    assert s3.slowed == ["PUT /new"]
    waits.set()
    monkeypatch.undo()
    wait_until(lambda: "/new" in files)


def test_while_it_cuts_a_reader_gets_a_part_and_an_error(s3):
    s3.health = "cutting"
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{s3.url}/old")


def test_while_it_cuts_a_writer_gets_no_answer(s3):
    s3.health = "cutting"
    with pytest.raises(httpx.TransportError):
        httpx.put(f"{s3.url}/new", content=b"0123456789")
    assert s3.stored_at == 0
