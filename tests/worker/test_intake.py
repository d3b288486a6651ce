from __future__ import annotations

import queue

import pytest

from jobs.store.holder import Lease
from tests.waiting import wait_until
from tests.worker.examples import Desk
from worker.supervisor.consumer import Consumer


class Scene:
    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.taken: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self.intake = Consumer(desk.redis, lambda: desk.job_store.holder.claim("group", 60), self.taken.put)

    def deliver(self, count: int = 1) -> list[str]:
        ids = [self.desk.submit() for _ in range(count)]
        for job_id in ids:
            self.desk.tickets.enqueue(job_id)
        return ids

    def take(self) -> str:
        self.intake.ask()
        return self.taken.get(timeout=30).job.id


@pytest.fixture
def scene(desk: Desk):
    scene = Scene(desk)
    yield scene
    scene.intake.stop()
    wait_until(lambda: scene.intake.is_over)


def test_nothing_is_taken_before_it_is_asked_for(scene):
    scene.deliver()
    with pytest.raises(queue.Empty):
        scene.taken.get(timeout=1)
    assert scene.desk.tickets.count() == 1


def test_one_is_taken_each_time_it_is_asked_for(scene):
    ids = scene.deliver(3)
    assert [scene.take() for _ in range(3)] == ids


def test_the_others_stay_for_other_groups(scene):
    scene.deliver(3)
    scene.take()
    with pytest.raises(queue.Empty):
        scene.taken.get(timeout=1)
    assert scene.desk.tickets.count() == 2
    assert scene.desk.job_store.client.counts()["queued"] == 2


def test_a_job_that_comes_later_is_taken_then(scene):
    scene.intake.ask()
    (job_id,) = scene.deliver()
    assert scene.taken.get(timeout=30).job.id == job_id


def test_a_ticket_without_a_job_is_no_harm(scene):
    scene.desk.tickets.enqueue("gone")
    scene.intake.ask()
    (job_id,) = scene.deliver()
    assert scene.taken.get(timeout=30).job.id == job_id


def test_withdrawn_it_claims_nothing_with_a_ticket_that_comes(scene):
    scene.intake.ask()
    wait_until(lambda: scene.desk.redis.exists("rq:workers"))
    scene.intake.withdraw()
    (job_id,) = scene.deliver()
    with pytest.raises(queue.Empty):
        scene.taken.get(timeout=1.5)
    assert scene.take() == job_id


def test_stopped_while_it_has_a_ticket_it_passes_that_on(scene):
    scene.intake.ask()
    wait_until(lambda: scene.desk.redis.exists("rq:workers"))
    scene.intake.withdraw()
    (job_id,) = scene.deliver()
    wait_until(lambda: scene.desk.tickets.count() == 0)
    scene.intake.stop()
    wait_until(lambda: scene.intake.is_over)
    assert scene.desk.tickets.count() == 1
    assert scene.desk.job_store.client.get(job_id).status == "queued"


def test_stopped_it_ends_without_ever_having_been_asked(scene):
    scene.intake.stop()
    wait_until(lambda: scene.intake.is_over)
