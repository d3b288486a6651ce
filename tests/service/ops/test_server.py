"""The separate port for operators."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from fastapi.testclient import TestClient

from jobs.registration import GroupRegistration
from service.app import create_app
from tests.servers import answers, free_port
from tests.service.conftest import settings_for
from tests.waiting import wait_until

PATHS = ("/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json")


@pytest.fixture
def ops_port():
    return free_port()


@pytest.fixture
def public(redis_server, redis, tmp_path, ops_port):
    with TestClient(create_app(settings_for(redis_server, tmp_path, ops_port=ops_port))) as client:
        yield client


@pytest.fixture
def ops(public, ops_port):
    with httpx.Client(base_url=f"http://127.0.0.1:{ops_port}", timeout=60) as client:
        wait_until(lambda: answers(ops_port, "/livez"))
        yield client


def test_operator_routes_are_only_on_the_ops_port(public, ops):
    for path in PATHS:
        assert ops.get(path).status_code == 200, path
        assert public.get(path).status_code == 404, path
    assert 'route="/docs",status="404"' not in ops.get("/metrics").text
    assert "/generate" in ops.get("/openapi.json").json()["paths"]


def test_jobs_are_not_on_the_ops_port(ops):
    for path in ("/jobs", "/", "/capability", "/session"):
        assert ops.get(path).status_code == 404


def test_readiness_details_are_only_on_the_ops_port(public, ops, redis):
    GroupRegistration(redis, "first").heartbeat("broken", ranks=1, failure="rank 1: OutOfMemoryError: no")
    message = ops.get("/readyz?workers=1").json()["error"]["message"]
    assert "broken (rank 1: OutOfMemoryError: no)" in message
    answer = public.get("/readyz?workers=1")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "no worker group is ready")
    GroupRegistration(redis, "second").heartbeat("ready", ranks=1)
    assert (public.get("/readyz?workers=1").status_code, ops.get("/readyz?workers=1").status_code) == (
        200,
        200,
    )


def test_foreign_host_names_are_refused_on_the_ops_port(ops):
    assert ops.get("/metrics", headers={"Host": "evil.example"}).status_code == 421


def test_service_does_not_start_if_the_ops_port_is_taken(redis_server, redis, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = settings_for(redis_server, tmp_path, ops_port=other.getsockname()[1])
        with pytest.raises(OSError, match="in use"), TestClient(create_app(settings)):
            pass


def test_one_signal_ends_both_ports(redis_server, redis, tmp_path, ops_port):
    port = free_port()
    environment = {
        "LONGCAT_REDIS_URL": redis_server,
        "LONGCAT_DATA_DIR": str(tmp_path),
        "LONGCAT_PORT": str(port),
        "LONGCAT_OPS_PORT": str(ops_port),
    }
    command = [sys.executable, "-m", "service"]
    with subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: answers(port, "/livez") and answers(ops_port, "/metrics"))
        finally:
            process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode in {0, -signal.SIGTERM}, log
    assert "Traceback" not in log
    assert not answers(ops_port, "/livez")
