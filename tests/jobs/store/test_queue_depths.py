"""The depths of the queue are reported with the time since a job was queued last."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.store.queue_depths import QueueDepth, queue_depths
from jobs.store.quotas import Quotas
from jobs.work import work_units
from tests.jobs.examples import ORDER, REQUIREMENT, ExampleStore
from tests.orders import make_order

SIZE = work_units(ORDER.plan)


@pytest.fixture
def store(redis: Redis) -> ExampleStore:
    return ExampleStore(redis)


def depth_of(store: ExampleStore, priority: str = "normal") -> QueueDepth:
    (depth,) = [each for each in queue_depths(store.redis, store.clock) if each.priority == priority]
    return depth


def test_waiting_time_begins_at_submission(store: ExampleStore, redis: Redis):
    store.submit(priority="low")
    store.clock.advance(5)
    store.submit(priority="low")
    store.submit(priority="high")
    store.clock.advance(2)
    assert queue_depths(redis, store.clock) == [
        QueueDepth("high", REQUIREMENT, num_jobs=1, num_held=0, work_units=SIZE, oldest_s=2.0),
        QueueDepth("low", REQUIREMENT, num_jobs=2, num_held=0, work_units=2 * SIZE, oldest_s=7.0),
    ]


def test_waiting_time_of_a_drained_job_begins_when_it_was_requeued(store: ExampleStore):
    store.submit()
    store.clock.advance(1)
    claim = store.claim()
    for _ in range(60):
        store.clock.advance(20)
        store.holder.renew_lease(claim)
    store.holder.requeue(claim, crashed=False)
    store.clock.advance(3)
    assert depth_of(store).oldest_s == 3.0
    store.submit()
    store.clock.advance(2)
    assert depth_of(store).oldest_s == 5.0


@pytest.mark.parametrize("limit", ["owner_running_jobs", "total_running_jobs"])
def test_job_is_held_while_a_limit_keeps_it_from_starting(redis: Redis, limit: str):
    store = ExampleStore(redis, quotas=Quotas(**{limit: 1}))
    claim = store.start(owner="alice")
    store.submit(owner="alice")
    store.submit(owner="bob")
    num_held = {"owner_running_jobs": 1, "total_running_jobs": 2}[limit]
    assert depth_of(store).num_held == num_held
    assert depth_of(store).num_startable == 2 - num_held
    store.holder.requeue(claim, crashed=False)
    assert depth_of(store).num_held == 0


@pytest.mark.parametrize("looks", [0, 2])
def test_requeued_job_is_held_while_a_limit_keeps_it_from_starting(redis: Redis, looks: int):
    store = ExampleStore(redis, quotas=Quotas(owner_running_jobs=1))
    first = store.start(owner="alice")
    store.submit(owner="alice", priority="high")
    store.holder.requeue(first, crashed=False)
    store.claim()
    for _ in range(looks):
        assert store.holder.claim("b", 30) is None
    assert depth_of(store).num_held == depth_of(store).num_jobs == 1


def test_jobs_behind_many_held_ones_are_found(redis: Redis):
    store = ExampleStore(redis, quotas=Quotas(owner_running_jobs=1))
    store.start(owner="alice")
    for _ in range(60):
        store.submit(owner="alice")
    assert depth_of(store).oldest_s == 0.0
    store.submit(owner="bob")
    store.clock.advance(4)
    assert depth_of(store).oldest_s == 4.0
    assert (depth_of(store).num_held, depth_of(store).num_jobs) == (60, 61)


def test_size_follows_each_way_out_of_the_queue(store: ExampleStore):
    long = make_order(ORDER, num_inference_steps=50)
    first, second, third, _ = (store.submit(order=order) for order in (long, ORDER, long, ORDER))
    assert depth_of(store).mean_work_units == (SIZE + work_units(long.plan)) / 2
    assert store.claim().job.id == first.id
    store.client.cancel(second.id)
    assert depth_of(store).work_units == SIZE + work_units(long.plan)
    store.client.delete(third.id)
    assert depth_of(store).work_units == SIZE


def test_job_that_an_earlier_release_took_out_no_longer_counts(store: ExampleStore, redis: Redis):
    first, _ = store.submit(), store.submit()
    redis.zrem("longcat:queue:normal", first.id)
    assert (depth_of(store).num_jobs, depth_of(store).work_units) == (1, SIZE)


def test_running_jobs_do_not_wait(store: ExampleStore, redis: Redis):
    store.start()
    assert queue_depths(redis, store.clock) == []
