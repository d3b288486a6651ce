from __future__ import annotations

import queue

import pytest

from jobs.store.holder import Lease
from tests.waiting import wait_until
from tests.worker.supervisor.backends import LocalBackends
from worker.supervisor.consumer import Consumer


class Scene:
    def __init__(self, backends: LocalBackends) -> None:
        self.backends = backends
        self.claims: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self.requirements: list[str] = []
        self.consumer = Consumer(
            backends.redis,
            lambda: backends.job_store.holder.claim("group", 60),
            self.claims.put,
            lambda: self.requirements,
        )
        self.consumer.start()

    def deliver(self, count: int = 1) -> list[str]:
        ids = [self.backends.submit() for _ in range(count)]
        for job_id in ids:
            self.backends.tickets.enqueue(job_id)
        return ids

    def claim(self) -> str:
        self.consumer.request_claim()
        return self.claims.get(timeout=30).job.id


@pytest.fixture
def scene(backends: LocalBackends):
    scene = Scene(backends)
    yield scene
    scene.consumer.stop()
    scene.consumer.join(30)
    assert not scene.consumer.is_alive()


def test_no_job_is_claimed_without_a_request(scene):
    scene.deliver()
    with pytest.raises(queue.Empty):
        scene.claims.get(timeout=1)
    assert scene.backends.tickets.count() == 1


def test_each_request_claims_one_job(scene):
    ids = scene.deliver(3)
    assert [scene.claim() for _ in range(3)] == ids


def test_other_jobs_are_left_to_other_groups(scene):
    scene.deliver(3)
    scene.claim()
    with pytest.raises(queue.Empty):
        scene.claims.get(timeout=1)
    assert scene.backends.tickets.count() == 2
    assert scene.backends.job_store.client.counts()["queued"] == 2


def test_request_waits_for_a_job(scene):
    scene.consumer.request_claim()
    (job_id,) = scene.deliver()
    assert scene.claims.get(timeout=30).job.id == job_id


def test_ticket_without_a_job_is_ignored(scene):
    scene.backends.tickets.enqueue("gone")
    scene.consumer.request_claim()
    (job_id,) = scene.deliver()
    assert scene.claims.get(timeout=30).job.id == job_id


def test_withdrawn_request_claims_nothing(scene):
    scene.consumer.request_claim()
    wait_until(lambda: scene.backends.redis.exists("rq:workers"))
    scene.consumer.withdraw_request()
    (job_id,) = scene.deliver()
    with pytest.raises(queue.Empty):
        scene.claims.get(timeout=1.5)
    assert scene.claim() == job_id


def test_stopped_consumer_passes_its_ticket_on(scene):
    scene.consumer.request_claim()
    wait_until(lambda: scene.backends.redis.exists("rq:workers"))
    scene.consumer.withdraw_request()
    (job_id,) = scene.deliver()
    wait_until(lambda: scene.backends.tickets.count() == 0)
    scene.consumer.stop()
    scene.consumer.join(30)
    assert not scene.consumer.is_alive()
    assert scene.backends.tickets.count() == 1
    assert scene.backends.job_store.client.get(job_id).status == "queued"


def test_tickets_for_requirements_that_have_left_the_queue_are_awaited(scene):
    scene.requirements = ["task=a"]
    scene.deliver()
    scene.claim()
    scene.requirements = []
    job_id = scene.backends.submit()
    scene.backends.tickets.enqueue(job_id, "task=a")
    assert scene.claim() == job_id


def test_consumer_stops_without_a_request(scene):
    scene.consumer.stop()
    scene.consumer.join(30)
    assert not scene.consumer.is_alive()
