from __future__ import annotations

import threading

import pytest
from redis import Redis

from jobs.capability import Capability, latest
from jobs.errors import Unavailable
from jobs.registration import GroupRegistration, live_groups
from tests.waiting import wait_until
from tests.worker.examples import Desk, a_film
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.registration import Heartbeat, Shown, clear_spool

CAPABILITY = Capability(model="m", tasks=("text_to_video",), limits={}, device="cpu", dtype="float32")


class Scene:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.taken = threading.Event()
        self.presence = Heartbeat(GroupRegistration(redis, "group", ttl_s=5), redis, 2, self.taken.set)

    def state(self) -> tuple[str, str | None] | None:
        statuses = live_groups(self.redis)
        return (statuses[0].state, statuses[0].job) if statuses else None


@pytest.fixture
def scene(desk: Desk):
    scene = Scene(desk.redis)
    scene.presence.start()
    yield scene
    scene.presence.leave()


def test_a_group_shows_that_it_starts(scene):
    wait_until(lambda: scene.state() == ("starting", None))
    assert live_groups(scene.redis)[0].ranks == 2


def test_a_change_is_shown(scene):
    scene.presence.show(Shown("busy", "j"))
    wait_until(lambda: scene.state() == ("busy", "j"))
    scene.presence.show(Shown("broken"))
    wait_until(lambda: scene.state() == ("broken", None))


def test_what_may_be_ordered_is_published_when_it_is_known(scene):
    scene.presence.show(Shown("ready", None, CAPABILITY))
    wait_until(lambda: scene.state() == ("ready", None))
    assert latest(scene.redis) == CAPABILITY


def test_a_group_that_leaves_is_seen_no_more(scene):
    wait_until(scene.state)
    scene.presence.leave()
    assert scene.state() is None


def test_who_lost_the_name_is_told(scene):
    wait_until(scene.state)
    scene.redis.set("longcat:group:group:holder", "another")
    assert scene.taken.wait(30)


def test_redis_away_is_no_harm(scene, monkeypatch):
    wait_until(scene.state)
    real, calls = scene.presence._seat.heartbeat, []

    def away(*given: object) -> None:
        calls.append(given)
        if len(calls) < 3:
            raise Unavailable("away")
        real(*given)

    monkeypatch.setattr(scene.presence._seat, "heartbeat", away)
    scene.presence.show(Shown("ready"))
    wait_until(lambda: scene.state() == ("ready", None))
    assert not scene.taken.is_set()


def test_the_spool_is_cleared_of_jobs_that_ended_or_are_gone(desk: Desk):
    keeper = LeaseRenewer(desk.job_store, lambda _: None)
    ended, waiting, held = desk.hold(), desk.hold(), desk.hold()
    for one in (ended, waiting, held):
        a_film(one.folder)
    a_film(desk.spool.folder("gone"))
    desk.job_store.holder.confirm_cancel(ended.claim)
    desk.job_store.holder.requeue(waiting.claim, crashed=False)
    keeper.keep(held)
    clear_spool(desk.spool, desk.job_store, keeper)
    assert set(desk.spool.job_ids) == {waiting.job_id, held.job_id}
    keeper.let_go(held)


def test_a_job_in_hand_keeps_its_files_even_if_it_has_ended(desk: Desk):
    keeper = LeaseRenewer(desk.job_store, lambda _: None)
    held = desk.hold()
    keeper.keep(held)
    desk.job_store.holder.confirm_cancel(held.claim)
    clear_spool(desk.spool, desk.job_store, keeper)
    assert desk.spool.job_ids == [held.job_id]
    keeper.let_go(held)
