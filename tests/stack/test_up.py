"""Coming up and going down: what is refused at once, and what is said when a part fails."""

from __future__ import annotations

import socket

import pytest

from stack import up
from stack.errors import StackError
from stack.processes import Program
from stack.settings import StackSettings
from stack.up import stack_up
from tests.servers import answers, free_port
from tests.waiting import wait_until

READY = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

print(os.environ["LONGCAT_REDIS_URL"])
http.server.HTTPServer(("127.0.0.1", int(os.environ["LONGCAT_PORT"])), Handler).serve_forever()
"""
READY_GROUP = """
import os, time
from jobs.registration import GroupRegistration
from jobs.connect import connect

seat = GroupRegistration(connect(os.environ["LONGCAT_REDIS_URL"]), "fake-0")
while True:
    seat.heartbeat("ready", ranks=1)
    time.sleep(1)
"""
STAYS = "import time\ntime.sleep(1000)\n"
FAILS = "print('no such thing'); raise SystemExit(3)\n"


@pytest.fixture
def settings(tmp_path, redis, redis_server):
    (tmp_path / "checkpoint").mkdir()
    return StackSettings(
        data_dir=tmp_path / "data",
        checkpoint=tmp_path / "checkpoint",
        port=free_port(),
        redis_url=redis_server,
    )


@pytest.fixture
def written():
    return []


@pytest.fixture
def write_line(written):
    return lambda *line: written.append(line)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Puts pieces of code in the place of the API and the worker."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def parts(api, worker):
        for name, code in (("API", api), ("WORKER", worker)):
            (tmp_path / f"fake_{name.lower()}.py").write_text(code)
            monkeypatch.setattr(up, name, Program(name.lower(), f"fake_{name.lower()}"))

    return parts


def test_it_is_there_when_the_api_says_ready_and_gone_afterwards(settings, parts, write_line):
    parts(READY, READY_GROUP)
    with stack_up(settings, write_line) as stack:
        stack.check()
        assert stack.url == f"http://127.0.0.1:{settings.port}"
        assert answers(settings.port, "/readyz")
    assert not answers(settings.port, "/readyz")
    assert all(process.returncode is not None for process in stack.processes.values())


def test_the_parts_are_told_what_was_settled(settings, parts, write_line, written):
    parts(READY, READY_GROUP)
    with stack_up(settings, write_line):
        wait_until(lambda: ("api", settings.redis_url) in written)


def test_an_api_alone_is_not_ready(settings, parts, write_line):
    parts(READY, "import time\ntime.sleep(1)\nraise SystemExit(3)\n")
    with pytest.raises(StackError, match="the worker ended by itself"):
        _stay(settings, write_line)


def test_a_private_redis_comes_with_it(settings, parts, write_line, written):
    parts(READY, READY_GROUP)
    with stack_up(settings.model_copy(update={"redis_url": ""}), write_line):
        wait_until(lambda: any(line.startswith("unix://") for _, line in written))
    assert list((settings.data_dir / "redis").glob("appendonly*"))  # a folder from Redis 7 on


@pytest.mark.parametrize(("api", "worker", "name"), [(FAILS, STAYS, "api"), (READY, FAILS, "worker")])
def test_a_part_that_ends_by_itself_is_named_with_its_code(settings, parts, write_line, api, worker, name):
    parts(api, worker)
    with pytest.raises(StackError, match=rf"the {name} ended by itself \(exit code 3\)"):
        _stay(settings, write_line)


def _stay(settings, write_line):
    with stack_up(settings, write_line) as stack:
        while True:
            stack.check()


def test_a_port_in_use_is_said_before_anything_starts(settings, write_line, written):
    said = rf"127\.0\.0\.1:{settings.port} cannot be used .*LONGCAT_PORT"
    with socket.create_server(("127.0.0.1", settings.port)), pytest.raises(StackError, match=said):
        _stay(settings, write_line)
    assert not settings.data_dir.exists()


def test_a_missing_checkpoint_is_said_before_anything_starts(settings, write_line, tmp_path):
    missing = settings.model_copy(update={"checkpoint": tmp_path / "nowhere"})
    with pytest.raises(StackError, match=f"LONGCAT_CHECKPOINT names no folder: {tmp_path / 'nowhere'}"):
        _stay(missing, write_line)
    assert not settings.data_dir.exists()


def test_a_redis_that_does_not_answer_is_said_before_anything_starts(settings, write_line, written, tmp_path):
    away = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody"})
    with pytest.raises(StackError, match="LONGCAT_REDIS_URL: Redis cannot be reached"):
        _stay(away, write_line)
    assert written == []


def test_a_second_stack_on_the_same_data_is_refused(settings, parts, write_line):
    parts(READY, READY_GROUP)
    private = settings.model_copy(update={"redis_url": ""})
    with stack_up(private, write_line), pytest.raises(StackError, match="in use by another stack"):
        _stay(private.model_copy(update={"port": free_port()}), write_line)
