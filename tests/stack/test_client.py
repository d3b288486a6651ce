"""The client of the demo, against a server that says what each test lets it say."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stack.client import Client, Wish
from stack.errors import StackError
from tests.servers import free_port

FILM = b"not a film, but bytes" * 1000


class Server(ThreadingHTTPServer):
    """Answers each path with what is planned for it, the last answer again and again; keeps the requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        self.requests: list[tuple[str, str, bytes]] = []

    def plan(self, path, *bodies, status=200):
        self.answers[path] = [
            (status, body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.headers.get("Content-Type", ""), body))
        planned = self.server.answers[self.path]
        status, answer = planned.pop(0) if len(planned) > 1 else planned[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    with Client.of(f"http://127.0.0.1:{server.server_port}") as client:
        yield client


def job(status, **more):
    return {"id": "j", "status": status, "error": None, **more}


def done(film=FILM):
    return job("succeeded", result={"video_url": "/jobs/j/video", "sha256": hashlib.sha256(film).hexdigest()})


def test_a_prompt_is_ordered_as_json(client, server):
    server.plan("/generate", job("queued"), status=202)
    assert client.order(Wish("prompt", "a cat", 7)) == "j"
    assert server.requests == [("POST", "application/json", b'{"prompt":"a cat","seed":7}')]


def test_an_image_is_ordered_as_a_form(client, server):
    server.plan("/generate", job("queued"), status=202)
    client.order(Wish("image", "a cat", 7, b"PNG"))
    method, kind, body = server.requests[0]
    assert (method, kind.partition(";")[0]) == ("POST", "multipart/form-data")
    assert b'name="image"; filename="first-frame.png"' in body
    assert b"a cat" in body


def test_a_refusal_is_told_in_the_services_words(client, server):
    server.plan("/generate", {"error": {"code": "invalid_request", "message": "too long"}}, status=422)
    with pytest.raises(StackError, match=r"422: .*too long"):
        client.order(Wish("prompt", "a cat", 7))


def test_a_job_is_shown_until_it_has_succeeded(client, server):
    server.plan("/jobs/j", job("queued"), job("running"), done())
    shown: list[dict[str, str]] = []
    assert client.follow("j", shown.append)["status"] == "succeeded"
    assert [now["status"] for now in shown] == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_that_does_not_succeed_says_why(client, server, status):
    server.plan("/jobs/j", job(status, error={"message": "out of memory"}))
    with pytest.raises(StackError, match=f"job j {status}: out of memory"):
        client.follow("j", lambda _: None)


def test_the_film_arrives_whole(client, server, tmp_path):
    server.plan("/jobs/j/video", FILM)
    client.save_video(done(), tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == FILM


def test_another_film_than_the_jobs_is_refused(client, server, tmp_path):
    server.plan("/jobs/j/video", b"another film")
    with pytest.raises(StackError, match="not the film that job j made"):
        client.save_video(done(), tmp_path / "film.mp4")


def test_a_film_that_is_gone_is_told(client, server, tmp_path):
    server.plan("/jobs/j/video", b"gone", status=404)
    with pytest.raises(StackError, match="404: gone"):
        client.save_video(done(), tmp_path / "film.mp4")


def test_a_service_that_is_away_is_told():
    with (
        Client.of(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(StackError, match="did not answer"),
    ):
        client.order(Wish("prompt", "a cat", 7))


def test_an_answer_that_is_no_json_is_told(client, server):
    server.plan("/jobs/j", b"<html>")
    with pytest.raises(StackError, match="did not answer"):
        client.follow("j", lambda _: None)
