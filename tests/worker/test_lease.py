from __future__ import annotations

import queue
import threading

import pytest

from jobs.errors import Unavailable
from jobs.record import Progress
from jobs.registration import GroupRegistration
from jobs.store.job_store import JobStore
from tests.waiting import wait_until
from tests.worker.examples import Desk
from worker.supervisor.job import ClaimedJob
from worker.supervisor.lease_renewer import LeaseRenewer


class DeafLedger(JobStore):
    """A real job_store that can be out of reach."""

    is_away = False
    beats = 0

    def beat(self, claim, progress=None, preempt_after_s=None):
        self.beats += 1
        if self.is_away:
            raise Unavailable("Redis is away")
        return super().beat(claim, progress, preempt_after_s)


class Scene:
    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.job_store = DeafLedger(desk.redis)
        self.told: queue.SimpleQueue[ClaimedJob] = queue.SimpleQueue()
        self.keeper = LeaseRenewer(self.job_store, self.told.put, preempt_after_s=0.0)

    def hold(self) -> ClaimedJob:
        held = self.desk.hold()
        self.keeper.keep(held)
        return held

    def wait_for_beats(self, count: int = 3) -> None:
        at = self.job_store.beats
        wait_until(lambda: self.job_store.beats >= at + count)


@pytest.fixture
def scene(desk: Desk):
    scene = Scene(desk)
    yield scene
    for held in list(scene.keeper._held):
        scene.keeper.let_go(held)


def test_who_has_to_make_way_is_told_and_its_group_drains_it(scene):
    scene.desk.submit(priority="low")
    held = scene.desk.hold(scene.desk.claim("a"))
    GroupRegistration(scene.desk.redis, "a", ttl_s=60).heartbeat("busy", ranks=1, job=held.job_id)
    scene.keeper.keep(held)
    scene.wait_for_beats()
    assert held.wish is None
    scene.desk.submit(priority="high")
    assert scene.told.get(timeout=30) is held
    assert (held.verdict, held.wish) == ("preempt", "drain")


def test_a_kept_job_does_not_lose_its_lease(scene, redis):
    held = scene.hold()
    before = redis.zscore("longcat:leases", held.job_id)
    scene.wait_for_beats()
    assert redis.zscore("longcat:leases", held.job_id) > before


def test_progress_is_told_as_it_is(scene):
    held = scene.hold()
    held.progress = Progress(phase="denoise", step=3, num_steps=4)
    wait_until(lambda: scene.desk.job_store.client.get(held.job_id).progress == held.progress)


def test_progress_that_did_not_change_is_no_event(scene):
    held = scene.hold()
    scene.wait_for_beats(4)
    events = [event for event in scene.desk.job_store.client.events(held.job_id) if event.progress]
    assert len(events) == 1


@pytest.mark.parametrize("verdict", ["cancel", "lease_lost"])
def test_a_verdict_is_told_once(scene, verdict):
    held = scene.hold()
    scene.wait_for_beats(1)
    if verdict == "cancel":
        scene.desk.job_store.client.cancel(held.job_id)
    else:
        scene.desk.take_over(held)
    assert scene.told.get(timeout=30) is held
    assert held.verdict == verdict
    scene.wait_for_beats(3)
    assert scene.told.empty()


def test_while_redis_is_away_the_job_goes_on(scene):
    held = scene.hold()
    scene.job_store.is_away = True
    scene.wait_for_beats(3)
    assert (held.verdict, scene.told.empty()) == (None, True)
    scene.job_store.is_away = False
    scene.desk.job_store.client.cancel(held.job_id)
    assert scene.told.get(timeout=30) is held


def test_a_job_that_was_let_go_is_not_beaten_for(scene):
    held = scene.hold()
    assert scene.keeper.keeps(held.job_id)
    scene.keeper.let_go(held)
    scene.desk.job_store.holder.confirm_cancel(held.claim)
    at = scene.job_store.beats
    other = scene.hold()
    scene.wait_for_beats(3)
    assert not scene.keeper.keeps(held.job_id)
    assert scene.keeper.keeps(other.job_id)
    assert (held.verdict, scene.told.empty()) == (None, True)
    assert scene.job_store.beats > at


def test_the_answer_about_a_job_that_ended_meanwhile_is_no_verdict(scene, monkeypatch):
    held = scene.desk.hold()
    asked, answer = threading.Event(), threading.Event()

    def slow(claim, progress=None, preempt_after_s=None):
        asked.set()
        answer.wait(30)
        return "lease_lost"

    monkeypatch.setattr(scene.job_store, "beat", slow)
    scene.keeper.keep(held)
    asked.wait(30)
    scene.keeper.let_go(held)
    answer.set()
    monkeypatch.undo()
    scene.hold()
    scene.wait_for_beats(2)
    assert (held.verdict, scene.told.empty()) == (None, True)


def test_several_jobs_are_kept_at_once(scene):
    first, second = scene.hold(), scene.hold()
    scene.desk.job_store.client.cancel(second.job_id)
    assert scene.told.get(timeout=30) is second
    assert first.verdict is None
