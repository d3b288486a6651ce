"""Workers publish what they can make; the service reads it."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from redis import Redis

from jobs.capability import Capability, latest
from jobs.connect import connect
from jobs.errors import NoCapability, Unavailable
from jobs.registration import GroupRegistration, live_groups
from model.spec.limits import Limits

CAPABILITY = Capability(
    model="LongCat-Video",
    tasks=("text_to_video", "image_to_video"),
    limits={"fps": 15, "buckets": {"480p": {"1.00": [640, 640]}}},
    context_parallel=2,
    device="cpu",
    dtype="float32",
)


def test_no_capability_before_a_worker_published_one(redis: Redis):
    with pytest.raises(NoCapability):
        latest(redis)


def test_latest_publication_counts(redis: Redis):
    CAPABILITY.publish(redis)
    newer = CAPABILITY.model_copy(update={"context_parallel": 4})
    newer.publish(redis)
    assert latest(redis) == newer


def test_capability_outlives_its_workers(redis: Redis):
    CAPABILITY.publish(redis)
    registration = GroupRegistration(redis, "a")
    registration.heartbeat("ready", 2)
    registration.release()
    assert live_groups(redis) == []
    assert latest(redis) == CAPABILITY
    assert redis.ttl("longcat:capability") == -1


def test_unknown_task_is_not_published():
    with pytest.raises(ValidationError):
        Capability(model="x", tasks=("poetry",), limits={}, device="cpu", dtype="float32")


def test_unknown_fields_are_ignored(redis: Redis):
    document = {**CAPABILITY.model_dump(mode="json"), "schema_version": 2, "colour_depth": 10}
    redis.set("longcat:capability", json.dumps(document))
    assert latest(redis) == CAPABILITY.model_copy(update={"schema_version": 2})


def test_tasks_and_limits_of_a_later_release_are_ignored(redis: Redis):
    document = CAPABILITY.model_dump(mode="json")
    document["tasks"].append("poetry")
    document["limits"]["max_verses"] = 3
    redis.set("longcat:capability", json.dumps(document))
    found = latest(redis)
    assert found.tasks == CAPABILITY.tasks
    assert Limits.from_json(found.limits) == Limits.from_json(CAPABILITY.limits)


def test_group_in_an_unknown_state_counts_as_starting(redis: Redis):
    GroupRegistration(redis, "a").heartbeat("ready", 2)
    status = json.dumps({"group": "a", "state": "dreaming", "ranks": 2, "mood": "good"})
    redis.set("longcat:group:a", status)
    assert [group.state for group in live_groups(redis)] == ["starting"]


@pytest.mark.parametrize("document", ["{", "[]", '{"limits": {"default_size": 3}}', '{"tasks": 3}'])
def test_broken_capability_counts_as_none(redis: Redis, document: str):
    redis.set("longcat:capability", document)
    with pytest.raises(NoCapability):
        latest(redis)


def test_unreadable_capability_counts_as_none(redis: Redis, caplog):
    redis.set("longcat:capability", json.dumps({"tasks": ["poetry"]}))
    with pytest.raises(NoCapability):
        latest(redis)
    assert "cannot read the published capability" in caplog.text


def test_unavailable_without_redis():
    away = connect("redis://127.0.0.1:1", deadline_s=0)
    for call in (lambda: latest(away), lambda: CAPABILITY.publish(away)):
        with pytest.raises(Unavailable):
            call()
