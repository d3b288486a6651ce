"""Worker groups register under unique names, and are gone without heartbeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.errors import GroupTaken, Unavailable
from jobs.registration import GroupRegistration, live_groups
from tests.waiting import wait_until


def test_group_publishes_its_status(redis: Redis):
    GroupRegistration(redis, "b").heartbeat("starting", 2)
    registration = GroupRegistration(redis, "a")
    registration.heartbeat("ready", 4)
    registration.heartbeat("busy", 4, job="abc", failure="rank 1: a bug")
    first, second = live_groups(redis)
    assert (first.group, first.state, first.ranks, first.job) == ("a", "busy", 4, "abc")
    assert (second.group, second.state, second.ranks, second.job) == ("b", "starting", 2, None)
    assert (first.failure, second.failure) == ("rank 1: a bug", None)
    assert first.heartbeat_at is not None
    assert datetime.now(UTC) - first.heartbeat_at < timedelta(minutes=1)


def test_group_without_heartbeats_is_gone(redis: Redis):
    GroupRegistration(redis, "a", ttl_s=0.05).heartbeat("ready", 1)
    GroupRegistration(redis, "b").heartbeat("ready", 1)
    wait_until(lambda: [status.group for status in live_groups(redis)] == ["b"])
    assert redis.smembers("longcat:groups") == {b"b"}


def test_two_workers_never_have_the_same_name(redis: Redis):
    holder = GroupRegistration(redis, "a")
    holder.heartbeat("busy", 2, job="abc")
    with pytest.raises(GroupTaken):
        GroupRegistration(redis, "a").heartbeat("starting", 2)
    holder.heartbeat("ready", 2)
    assert [status.state for status in live_groups(redis)] == ["ready"]


def test_released_name_is_free(redis: Redis):
    holder = GroupRegistration(redis, "a")
    holder.heartbeat("ready", 2)
    holder.release()
    GroupRegistration(redis, "a").heartbeat("starting", 2)


def test_name_is_free_after_its_ttl(redis: Redis):
    holder, heir = GroupRegistration(redis, "a", ttl_s=0.05), GroupRegistration(redis, "a")
    holder.heartbeat("ready", 2)
    wait_until(lambda: not live_groups(redis))
    heir.heartbeat("starting", 2)
    with pytest.raises(GroupTaken):
        holder.heartbeat("ready", 2)


def test_former_holder_cannot_release_the_name_of_the_next(redis: Redis):
    holder, heir = GroupRegistration(redis, "a", ttl_s=0.05), GroupRegistration(redis, "a")
    holder.heartbeat("ready", 2)
    wait_until(lambda: not live_groups(redis))
    heir.heartbeat("starting", 2)
    holder.release()
    assert [status.state for status in live_groups(redis)] == ["starting"]


def test_status_of_another_release_is_read_or_passed_over(redis: Redis, caplog):
    GroupRegistration(redis, "a").heartbeat("ready", 1)
    redis.sadd("longcat:groups", "b", "c")
    redis.set("longcat:group:b", '{"group": "b", "state": "ready", "ranks": 2, "region": "eu"}')
    redis.set("longcat:group:c", '{"state": "ready", "ranks": "many"}')
    assert [status.group for status in live_groups(redis)] == ["a", "b"]
    assert "passed over a group status" in caplog.text


def test_unavailable_without_redis():
    away = connect("redis://127.0.0.1:1", deadline_s=0)
    for call in (
        lambda: live_groups(away),
        lambda: GroupRegistration(away, "a").heartbeat("ready", 1),
        lambda: GroupRegistration(away, "a").release(),
    ):
        with pytest.raises(Unavailable):
            call()
