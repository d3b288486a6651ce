"""Test that the name of a primary moves to its replica, and what the faults of Redis make it answer."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from tests.chaos import redis_faults
from tests.chaos.redis_servers import NamedRedis
from tests.servers import redis_program


@pytest.fixture
def servers(tmp_path):
    servers = NamedRedis(tmp_path / "redis", redis_program())
    servers.start()
    yield servers
    servers.stop()


@pytest.fixture
def scene(servers) -> Any:
    site = SimpleNamespace(redis_server=servers, apis={"http://api": None})
    return SimpleNamespace(site=site, rng=random.Random(0))


def test_name_moves_to_the_replica_with_all_writes(servers):
    with Redis.from_url(servers.url) as before:
        for number in range(100):
            before.set(f"key-{number}", number)
        servers.fail_over()
        with Redis.from_url(servers.url) as after:
            assert after.dbsize() == 100
            assert after.set("new", 1)
        with pytest.raises(ReadOnlyError):
            before.set("old", 1)
    servers.fail_over()
    with Redis.from_url(servers.url) as again:
        assert again.dbsize() == 101


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (redis_faults.refuse_without_replicas, "NOREPLICAS"),
        (redis_faults.refuse_without_snapshot, "MISCONF"),
    ],
)
def test_redis_refuses_writes_until_it_is_repaired(servers, scene, cause, error):
    with Redis.from_url(servers.url) as client:
        active = cause(scene)
        with pytest.raises(ResponseError, match=error):
            client.set("key", 1)
        active.repair()
        assert client.set("key", 1)


def test_full_redis_refuses_what_needs_memory_until_it_is_repaired(servers, scene):
    with Redis.from_url(servers.url) as client:
        active = redis_faults.fill(scene)
        with pytest.raises(OutOfMemoryError):
            client.set("large", bytes(4 * redis_faults.WRITES_BEYOND_LIMIT))
        active.repair()
        assert client.set("key", 1)
