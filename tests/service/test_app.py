"""The service as a process: dependencies, settings, startup and shutdown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from jobs import connect
from jobs.errors import UnfitServer
from jobs.store.quotas import Quotas
from service.app import create_app
from service.settings import Settings
from tests.redis_fleet import RedisProcess
from tests.servers import answers, free_port
from tests.service.conftest import settings_for
from tests.service.http.raw import connected, head, read_until_closed, status
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def test_creating_an_app_writes_no_files_and_sends_nothing(tmp_path):
    create_app(settings_for("redis://127.0.0.1:1", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_startup_fails_on_an_unsupported_redis(redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "OLDEST_SERVER", (99, 0))
    with pytest.raises(UnfitServer), TestClient(create_app(settings_for(redis_server, tmp_path))):
        pass


@pytest.fixture
def keys_of_a_much_later_release(redis):
    redis.hset("longcat:keys_version", mapping={"version": 99, "oldest_reader": 98})
    yield
    redis.flushall()  # not every test here begins with an empty Redis


@pytest.mark.usefixtures("keys_of_a_much_later_release")
def test_startup_fails_on_keys_of_a_much_later_release(redis_server, tmp_path):
    with (
        pytest.raises(UnfitServer, match="a later release"),
        TestClient(create_app(settings_for(redis_server, tmp_path))),
    ):
        pass


class TestSettings:
    def test_settings_are_read_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("LONGCAT_PORT", "9000")
        monkeypatch.setenv("LONGCAT_MAX_IMAGE_PIXELS", "1000")
        assert (Settings().port, Settings().max_image_pixels) == (9000, 1000)

    def test_default_is_to_listen_on_loopback(self):
        assert Settings().host == "127.0.0.1"
        assert not Settings().fetch_limits.allow_private

    def test_default_limits_apply_until_set_to_none(self, monkeypatch):
        quotas = Settings().quotas
        assert quotas.owner_requests_per_s
        assert quotas.owner_queued_jobs
        assert quotas.total_queued_jobs
        assert quotas.owner_queued_jobs < quotas.total_queued_jobs
        assert quotas.owner_stored_jobs
        assert quotas.owner_input_bytes_per_day
        for name in ("OWNER_REQUESTS_PER_S", "OWNER_QUEUED_JOBS", "TOTAL_QUEUED_JOBS", "OWNER_STORED_JOBS"):
            monkeypatch.setenv(f"LONGCAT_{name}", "none")
        monkeypatch.setenv("LONGCAT_OWNER_INPUT_BYTES_PER_DAY", "")
        monkeypatch.setenv("LONGCAT_OWNER_EVENT_STREAMS", "None")
        assert Settings().quotas == Quotas(owner_input_bytes_per_day=quotas.owner_input_bytes_per_day)
        assert Settings().owner_event_streams is None

    def test_price_needs_a_currency(self):
        with pytest.raises(ValidationError, match="is required with GPU_HOUR_PRICE"):
            Settings(gpu_hour_price="2.50")
        settings = Settings(gpu_hour_price="2.50", currency="EUR")
        assert (settings.gpu_hour_price, settings.currency) == (Decimal("2.5"), "EUR")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("currency", "a:b"),
            ("gpu_hour_price", -1),
            ("owner_queued_jobs", 0),
            ("port", 70_000),
            ("max_body_bytes", 0),
            ("fetch_timeout_s", -1),
        ],
    )
    def test_invalid_values_are_refused(self, name, value):
        with pytest.raises(ValidationError):
            Settings(**{name: value})


class TestProcess:
    def run(self, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "service"],
            env={**os.environ, **{f"LONGCAT_{name}": str(value) for name, value in environment.items()}},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_serves_until_sigterm(self, redis_server, tmp_path):
        port = free_port()
        with self.run(REDIS_URL=redis_server, DATA_DIR=tmp_path, PORT=port) as process:
            try:
                wait_until(lambda: answers(port, "/livez"))
                two_lengths = head("GET", "/livez", "Content-Length: 0", "Transfer-Encoding: chunked")
                with connected(port) as connection:
                    connection.sendall(two_lengths)
                    assert status(read_until_closed(connection)) == 400  # by our protocol, not uvicorn's
            finally:
                process.send_signal(signal.SIGTERM)
            _, log = process.communicate()
        assert process.returncode == 0, log
        assert "Application shutdown complete" in log
        assert "Traceback" not in log

    def test_ends_if_a_redis_that_comes_late_has_keys_of_a_much_later_release(self, tmp_path):
        server = RedisProcess(tmp_path / "redis")
        with server, server.client() as redis:
            redis.hset("longcat:keys_version", mapping={"version": 99, "oldest_reader": 98})
        port = free_port()
        with self.run(REDIS_URL=server.url, DATA_DIR=tmp_path, PORT=port) as process:
            try:
                wait_until(lambda: answers(port, "/livez"))
                with server:
                    wait_until(lambda: process.poll() is not None)
            finally:
                process.kill()
            _, log = process.communicate()
        assert process.returncode == 2, log
        assert "a later release has used this Redis" in log
        assert "Traceback" not in log

    @pytest.mark.usefixtures("keys_of_a_much_later_release")
    def test_keys_of_a_much_later_release_are_refused_like_a_wrong_setting(self, redis_server, tmp_path):
        with self.run(REDIS_URL=redis_server, DATA_DIR=tmp_path, PORT=free_port()) as process:
            _, log = process.communicate()
        assert process.returncode == 2, log
        assert log.splitlines()[-1].startswith("error: a later release has used this Redis: its keys need")
        assert "Traceback" not in log

    def test_invalid_setting_is_named(self):
        with self.run(PORT="many") as process:
            _, log = process.communicate()
        assert process.returncode == 2
        assert log == "error: LONGCAT_PORT is 'many': must be an integer\n"
