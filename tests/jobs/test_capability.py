"""What may be ordered, and which groups are alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError
from redis import Redis

from jobs.capability import Capability, GroupRegistration, groups, latest
from jobs.connect import connect
from jobs.errors import GroupTaken, NoCapability, Unavailable
from tests.waiting import wait_until

CAPABILITY = Capability(
    model="LongCat-Video",
    tasks=("text_to_video", "image_to_video"),
    limits={"fps": 15, "buckets": {"480p": {"1.00": [640, 640]}}},
    context_parallel=2,
    device="cpu",
    dtype="float32",
)


def test_before_any_worker_came_nothing_may_be_ordered(redis: Redis):
    with pytest.raises(NoCapability):
        latest(redis)


def test_the_last_that_was_published_counts(redis: Redis):
    CAPABILITY.publish(redis)
    newer = CAPABILITY.model_copy(update={"context_parallel": 4})
    newer.publish(redis)
    assert latest(redis) == newer


def test_it_stays_when_all_workers_are_away(redis: Redis):
    CAPABILITY.publish(redis)
    seat = GroupRegistration(redis, "a")
    seat.publish("ready", 2)
    seat.leave()
    assert groups(redis) == []
    assert latest(redis) == CAPABILITY
    assert redis.ttl("longcat:capability") == -1


def test_a_task_that_nobody_knows_cannot_be_published():
    with pytest.raises(ValidationError):
        Capability(model="x", tasks=("poetry",), limits={}, device="cpu", dtype="float32")


def test_a_group_shows_what_it_does(redis: Redis):
    GroupRegistration(redis, "b").publish("starting", 2)
    seat = GroupRegistration(redis, "a")
    seat.publish("ready", 4)
    seat.publish("busy", 4, job="abc")
    first, second = groups(redis)
    assert (first.group, first.state, first.ranks, first.job) == ("a", "busy", 4, "abc")
    assert (second.group, second.state, second.ranks, second.job) == ("b", "starting", 2, None)
    assert first.heartbeat_at is not None
    assert datetime.now(UTC) - first.heartbeat_at < timedelta(minutes=1)


def test_a_silent_group_is_gone(redis: Redis):
    GroupRegistration(redis, "a", ttl_s=0.05).publish("ready", 1)
    GroupRegistration(redis, "b").publish("ready", 1)
    wait_until(lambda: [status.group for status in groups(redis)] == ["b"])
    assert redis.smembers("longcat:groups") == {b"b"}


def test_two_workers_never_hold_the_same_name(redis: Redis):
    holder = GroupRegistration(redis, "a")
    holder.publish("busy", 2, job="abc")
    with pytest.raises(GroupTaken):
        GroupRegistration(redis, "a").publish("starting", 2)
    holder.publish("ready", 2)
    assert [status.state for status in groups(redis)] == ["ready"]


def test_a_name_is_free_when_its_holder_left(redis: Redis):
    holder = GroupRegistration(redis, "a")
    holder.publish("ready", 2)
    holder.leave()
    GroupRegistration(redis, "a").publish("starting", 2)


def test_a_name_is_free_when_its_holder_was_silent_for_long(redis: Redis):
    holder, heir = GroupRegistration(redis, "a", ttl_s=0.05), GroupRegistration(redis, "a")
    holder.publish("ready", 2)
    wait_until(lambda: not groups(redis))
    heir.publish("starting", 2)
    with pytest.raises(GroupTaken):
        holder.publish("ready", 2)


def test_who_lost_the_name_cannot_take_it_from_the_next(redis: Redis):
    holder, heir = GroupRegistration(redis, "a", ttl_s=0.05), GroupRegistration(redis, "a")
    holder.publish("ready", 2)
    wait_until(lambda: not groups(redis))
    heir.publish("starting", 2)
    holder.leave()
    assert [status.state for status in groups(redis)] == ["starting"]


def test_without_redis_nothing_is_known():
    away = connect("redis://127.0.0.1:1", patience_s=0)
    for call in (
        lambda: latest(away),
        lambda: groups(away),
        lambda: CAPABILITY.publish(away),
        lambda: GroupRegistration(away, "a").publish("ready", 1),
        lambda: GroupRegistration(away, "a").leave(),
    ):
        with pytest.raises(Unavailable):
            call()
