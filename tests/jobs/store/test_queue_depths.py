"""What waits in the queue is reported with its age since it was queued last."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.store.quotas import Quotas
from jobs.store.waiting_jobs import waiting_jobs
from tests.jobs.examples import ExampleStore


@pytest.fixture
def store(redis: Redis) -> ExampleStore:
    return ExampleStore(redis)


def test_waiting_time_begins_at_submission(store: ExampleStore, redis: Redis):
    store.submit(priority="low")
    store.clock.advance(5)
    store.submit(priority="high")
    store.clock.advance(2)
    waiting = waiting_jobs(redis, store.clock)
    assert [(job.priority, job.waited_s, job.is_held) for job in waiting] == [
        ("high", 2.0, False),
        ("low", 7.0, False),
    ]


def test_waiting_time_of_a_drained_job_begins_when_it_was_requeued(store: ExampleStore, redis: Redis):
    store.submit()
    store.clock.advance(1)
    claim = store.claim()
    for _ in range(60):
        store.clock.advance(20)
        store.holder.renew_lease(claim)
    store.holder.requeue(claim, crashed=False)
    store.clock.advance(3)
    (job,) = waiting_jobs(redis, store.clock)
    assert job.waited_s == 3.0


@pytest.mark.parametrize("limit", ["owner_running_jobs", "total_running_jobs"])
def test_job_is_held_while_a_limit_keeps_it_from_starting(redis: Redis, limit: str):
    store = ExampleStore(redis, quotas=Quotas(**{limit: 1}))
    claim = store.start(owner="alice")
    store.submit(owner="alice")
    store.submit(owner="bob")
    held = {"owner_running_jobs": [True, False], "total_running_jobs": [True, True]}[limit]
    assert [job.is_held for job in waiting_jobs(redis, store.clock)] == held
    store.holder.requeue(claim, crashed=False)
    assert not any(job.is_held for job in waiting_jobs(redis, store.clock))


def test_running_jobs_do_not_wait(store: ExampleStore, redis: Redis):
    store.start()
    assert waiting_jobs(redis, store.clock) == []
