"""Test that a link to Redis delivers what was sent while it was cut once it is mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from stack.redis_server import RedisServer
from tests.chaos.redis_link import RedisLink, run_redis_link
from tests.servers import redis_program
from tests.waiting import wait_until


@pytest.fixture
def server(tmp_path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", redis_program())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def link(tmp_path, server) -> Iterator[RedisLink]:
    with run_redis_link(tmp_path / "link.sock", Path(server.url.removeprefix("unix://"))) as link:
        yield link


def client(link: RedisLink, timeout_s: float = 60.0) -> Redis:
    return Redis.from_url(link.url, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def test_cut_link_delivers_a_command_late_whose_client_gave_up(link, server):
    with client(link) as patient, client(link, 0.2) as impatient, Redis.from_url(server.url) as direct:
        assert patient.set("key", 1)
        assert impatient.ping()
        link.cut()
        with pytest.raises(RedisTimeoutError):
            impatient.set("late", 1)
        assert direct.get("late") is None
        link.mend()
        wait_until(lambda: direct.get("late") == b"1")
        assert patient.get("key") == b"1"


def test_link_closes_connections_when_redis_is_down(link, server):
    with client(link) as connected:
        assert connected.ping()
        server.kill()
        with pytest.raises(RedisConnectionError):
            connected.ping()
        with pytest.raises(RedisConnectionError):
            connected.ping()
        server.start()
        assert connected.ping()
