"""A release does not use keys in Redis that it is too old for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.errors import Unavailable, UnfitServer
from jobs.store.keys_version import KEYS_VERSION, OLDEST_READER, check_keys_version
from tests.jobs.examples import ExampleStore

KEY = "longcat:keys_version"
OWN = {b"version": str(KEYS_VERSION).encode(), b"oldest_reader": str(OLDEST_READER).encode()}


@pytest.fixture(autouse=True)
def _leave_redis_empty(redis: Redis) -> Iterator[None]:
    yield
    redis.flushall()


@pytest.fixture
def full(redis: Redis) -> Iterator[Redis]:
    redis.config_set("maxmemory", "1")
    yield redis
    redis.config_set("maxmemory", "0")


def used_by_release(redis: Redis, version: int, oldest_reader: int) -> None:
    redis.hset(KEY, mapping={"version": version, "oldest_reader": oldest_reader})


def test_first_start_records_the_version(redis: Redis):
    check_keys_version(redis)
    check_keys_version(redis)
    assert redis.hgetall(KEY) == OWN


def test_version_is_recorded_while_redis_is_full(full: Redis):
    check_keys_version(full)
    assert full.hgetall(KEY) == OWN


def test_version_of_an_earlier_release_is_replaced(redis: Redis):
    used_by_release(redis, OLDEST_READER, 1)
    check_keys_version(redis)
    assert redis.hgetall(KEY) == OWN


def test_update_that_skips_a_release_is_refused(redis: Redis):
    used_by_release(redis, OLDEST_READER - 1, 1)
    with pytest.raises(
        UnfitServer, match=f"have version {OLDEST_READER - 1}, and this release needs version"
    ):
        check_keys_version(redis)
    assert redis.hgetall(KEY)[b"version"] == str(OLDEST_READER - 1).encode()


def test_update_from_a_release_that_recorded_no_version_is_refused(redis: Redis):
    redis.set("longcat:last_sweep", 1)
    with pytest.raises(UnfitServer, match=r"from 0\.2\.0 to 0\.3\.0 first"):
        check_keys_version(redis)
    assert not redis.exists(KEY)


def test_version_is_recorded_again_after_running_processes_lost_it(redis: Redis):
    check_keys_version(redis)
    redis.flushall()
    ExampleStore(redis).maintenance.sweep()
    check_keys_version(redis)
    assert redis.hgetall(KEY) == OWN


def test_next_release_does_not_keep_this_one_from_starting(redis: Redis):
    used_by_release(redis, KEYS_VERSION + 2, KEYS_VERSION)
    check_keys_version(redis)
    assert redis.hgetall(KEY)[b"version"] == str(KEYS_VERSION + 2).encode()


def test_release_after_the_next_keeps_this_one_from_starting(redis: Redis):
    used_by_release(redis, KEYS_VERSION + 4, KEYS_VERSION + 2)
    with pytest.raises(UnfitServer, match=f"version {KEYS_VERSION + 2} or later, and this release has"):
        check_keys_version(redis)
    assert redis.hgetall(KEY)[b"version"] == str(KEYS_VERSION + 4).encode()


def test_record_that_cannot_be_read_is_replaced(redis: Redis):
    redis.hset(KEY, mapping={"version": "three", "oldest_reader": "one"})
    check_keys_version(redis)
    assert redis.hgetall(KEY) == OWN


def test_unavailable_without_redis():
    with pytest.raises(Unavailable):
        check_keys_version(connect("redis://127.0.0.1:1", deadline_s=0))
