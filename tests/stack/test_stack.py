"""Starting and stopping the stack: what is refused at once, and what is reported when a process fails."""

from __future__ import annotations

import socket

import pytest
from psutil import Process

from jobs.connect import connect
from stack import stack as stack_module
from stack.errors import StackError
from stack.processes import Program
from stack.settings import StackSettings
from stack.stack import running_stack
from tests.servers import answers, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

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

registration = GroupRegistration(connect(os.environ["LONGCAT_REDIS_URL"]), "fake-0")
while True:
    registration.heartbeat("ready", ranks=1)
    time.sleep(1)
"""
RUNS = "import time\ntime.sleep(1000)\n"
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
def programs(tmp_path, monkeypatch):
    """Replace the API and the worker with Python source code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def programs(api, worker):
        for name, code in (("API", api), ("WORKER", worker)):
            (tmp_path / f"fake_{name.lower()}.py").write_text(code)
            monkeypatch.setattr(stack_module, name, Program(name.lower(), f"fake_{name.lower()}"))

    return programs


def test_stack_answers_while_it_runs_and_stops_afterwards(settings, programs, write_line):
    programs(READY, READY_GROUP)
    with running_stack(settings, write_line) as stack:
        stack.check()
        assert stack.url == f"http://127.0.0.1:{settings.port}"
        assert answers(settings.port, "/readyz")
    assert not answers(settings.port, "/readyz")
    assert all(process.returncode is not None for process in stack.processes.values())


def test_programs_receive_the_settings(settings, programs, write_line, written):
    programs(READY, READY_GROUP)
    with running_stack(settings, write_line):
        wait_until(lambda: ("api", settings.redis_url) in written)


def test_stack_is_not_ready_without_a_worker(settings, programs, write_line):
    programs(READY, "import time\ntime.sleep(1)\nraise SystemExit(3)\n")
    with pytest.raises(StackError, match="the worker exited unexpectedly"):
        _run_until_it_fails(settings, write_line)


def test_stack_without_a_redis_url_starts_a_durable_redis(settings, programs, write_line, written):
    programs(READY, READY_GROUP)
    with running_stack(settings.model_copy(update={"redis_url": ""}), write_line):
        wait_until(lambda: any(line.startswith("unix://") for _, line in written))
    assert list((settings.data_dir / "redis").glob("appendonly*"))  # a folder from Redis 7 on


def kill_redis(settings):
    """Kill the Redis of the stack."""
    folder = str(settings.data_dir)
    (process,) = [each for each in Process().children() if folder in " ".join(each.cmdline())]
    process.kill()


def test_redis_that_was_killed_is_started_again_with_its_data(settings, programs, write_line, written):
    programs(READY, READY_GROUP)
    with running_stack(settings.model_copy(update={"redis_url": ""}), write_line) as stack:
        server = stack.redis
        assert server
        with connect(server.url) as redis:
            redis.set("kept", "yes")
        kill_redis(settings)
        wait_until(lambda: server.exit_code is not None)
        stack.check()
        with connect(server.url) as redis:
            assert redis.get("kept") == b"yes"
    assert ("stack", "Redis exited (exit code -9) and is started again") in written


def test_redis_that_is_killed_while_the_worker_loads_is_started_again(settings, programs, tmp_path):
    go = tmp_path / "go"
    own_redis = settings.model_copy(update={"redis_url": ""})
    lines = []

    def write_line(*line):
        lines.append(line)
        if line == ("worker", "loading"):
            kill_redis(settings)
            go.touch()

    waits = f"import pathlib, time\nprint('loading', flush=True)\ngo = pathlib.Path({str(go)!r})\n"
    programs(READY, f"{waits}while not go.exists():\n    time.sleep(0.01)\n{READY_GROUP}")
    with running_stack(own_redis, write_line) as stack:
        assert ("stack", "Redis exited (exit code -9) and is started again") in lines
        stack.check()


def test_worker_that_stops_has_a_redis_although_it_was_killed(settings, programs, write_line, written):
    worker = """
import os, signal, time
from jobs.registration import GroupRegistration
from jobs.connect import connect

def stop(*_):
    connect(os.environ["LONGCAT_REDIS_URL"], deadline_s=30.0).set("jobs", "back")
    print("stopped", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
GroupRegistration(connect(os.environ["LONGCAT_REDIS_URL"]), "fake-0", ttl_s=600).heartbeat("ready", ranks=1)
print("registered", flush=True)
time.sleep(1000)
"""
    programs(READY, worker)
    with running_stack(settings.model_copy(update={"redis_url": ""}), write_line) as stack:
        wait_until(lambda: ("worker", "registered") in written)
        server = stack.redis
        assert server
        kill_redis(settings)
        wait_until(lambda: server.exit_code is not None)
    assert stack.processes["worker"].returncode == 0
    assert ("worker", "stopped") in written


@pytest.mark.parametrize(("api", "worker", "name"), [(FAILS, RUNS, "api"), (READY, FAILS, "worker")])
def test_program_that_exits_is_reported_with_its_exit_code(settings, programs, write_line, api, worker, name):
    programs(api, worker)
    with pytest.raises(StackError, match=rf"the {name} exited unexpectedly \(exit code 3\)"):
        _run_until_it_fails(settings, write_line)


def _run_until_it_fails(settings, write_line):
    with running_stack(settings, write_line) as stack:
        while True:
            stack.check()


def test_port_in_use_is_reported_before_anything_starts(settings, write_line, written):
    message = rf"127\.0\.0\.1:{settings.port} cannot be used .*LONGCAT_PORT"
    with socket.create_server(("127.0.0.1", settings.port)), pytest.raises(StackError, match=message):
        _run_until_it_fails(settings, write_line)
    assert not settings.data_dir.exists()


def test_missing_checkpoint_is_reported_before_anything_starts(settings, write_line, tmp_path):
    missing = settings.model_copy(update={"checkpoint": tmp_path / "nowhere"})
    with pytest.raises(StackError, match=f"LONGCAT_CHECKPOINT is not a folder: {tmp_path / 'nowhere'}"):
        _run_until_it_fails(missing, write_line)
    assert not settings.data_dir.exists()


def test_unreachable_redis_is_reported_before_anything_starts(settings, write_line, written, tmp_path):
    away = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody"})
    with pytest.raises(StackError, match="LONGCAT_REDIS_URL: Redis cannot be reached"):
        _run_until_it_fails(away, write_line)
    assert written == []


def test_second_stack_with_the_same_data_folder_is_refused(settings, programs, write_line):
    programs(READY, READY_GROUP)
    with_own_redis = settings.model_copy(update={"redis_url": ""})
    with (
        running_stack(with_own_redis, write_line),
        pytest.raises(StackError, match="in use by another stack"),
    ):
        _run_until_it_fails(with_own_redis.model_copy(update={"port": free_port()}), write_line)
