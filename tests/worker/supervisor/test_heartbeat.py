from __future__ import annotations

import threading

import pytest
from redis import Redis

from jobs.capability import Capability
from jobs.errors import Unavailable
from jobs.fleet import read_fleet
from jobs.registration import GroupRegistration, live_groups
from jobs.store.metrics import counters
from tests.waiting import wait_until
from tests.worker.supervisor.backends import LocalBackends
from worker.supervisor.heartbeat import Heartbeat, PublishedStatus

CAPABILITY = Capability(model="m", tasks=("text_to_video",), limits={}, device="cpu", dtype="float32")


class Scene:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.name_taken = threading.Event()
        self.heartbeat = Heartbeat(GroupRegistration(redis, "group", ttl_s=60), redis, 2, self.name_taken.set)

    def leave(self) -> None:
        self.heartbeat.stop()
        self.heartbeat.join(30)
        assert not self.heartbeat.is_alive()

    def state(self) -> tuple[str, str | None] | None:
        statuses = live_groups(self.redis)
        return (statuses[0].state, statuses[0].job) if statuses else None


@pytest.fixture
def scene(backends: LocalBackends):
    scene = Scene(backends.redis)
    scene.heartbeat.start()
    yield scene
    scene.leave()


def test_group_is_published_as_starting(scene):
    wait_until(lambda: scene.state() == ("starting", None))
    assert live_groups(scene.redis)[0].ranks == 2


def test_changed_status_is_published(scene):
    scene.heartbeat.update(PublishedStatus("busy", "j"))
    wait_until(lambda: scene.state() == ("busy", "j"))
    scene.heartbeat.update(PublishedStatus("broken"))
    wait_until(lambda: scene.state() == ("broken", None))


def test_duration_of_a_start_is_counted_once_the_pool_is_known(scene):
    scene.heartbeat.count_start(30.0)
    scene.heartbeat.update(PublishedStatus("busy", None, CAPABILITY))
    scene.heartbeat.count_start(50.0)
    pool = CAPABILITY.pool
    wait_until(lambda: counters(scene.redis).get(("group_start_seconds_count", pool)) == 2)
    assert counters(scene.redis)["group_start_seconds_sum", pool] == 80.0


def test_capability_is_published_once_it_is_known(scene):
    scene.heartbeat.update(PublishedStatus("ready", None, CAPABILITY))
    wait_until(lambda: scene.state() == ("ready", None))
    assert read_fleet(scene.redis).first().capability == CAPABILITY


def test_stopped_heartbeat_removes_the_group(scene):
    wait_until(scene.state)
    scene.leave()
    assert scene.state() is None


def test_lost_name_is_reported(scene):
    wait_until(scene.state)
    scene.redis.set("longcat:group:group:holder", "another")
    assert scene.name_taken.wait(30)


def test_status_is_published_again_after_redis_was_unavailable(scene, monkeypatch):
    wait_until(scene.state)
    real, calls = scene.heartbeat._registration.heartbeat, []

    def away(*given: object) -> None:
        calls.append(given)
        if len(calls) < 3:
            raise Unavailable("away")
        real(*given)

    monkeypatch.setattr(scene.heartbeat._registration, "heartbeat", away)
    scene.heartbeat.update(PublishedStatus("ready"))
    wait_until(lambda: scene.state() == ("ready", None))
    assert not scene.name_taken.is_set()
