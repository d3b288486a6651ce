"""The GPU time of ended jobs is added up by owner and day."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from redis import Redis
from redis.client import Pipeline

from jobs.capability import Capability
from jobs.store.metrics import counters
from jobs.store.usage import NUM_DAYS, Usage, usage
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore, a_result, keys_of

TODAY = date(2023, 11, 14)
DAY_S = 86400


def run_one(store: ExampleStore, owner: str, seconds: float, **fields: Any) -> None:
    lease = store.start(owner=owner, **fields)
    store.clock.advance(seconds)
    store.holder.succeed(lease, a_result(lease), {})


def test_gpu_time_is_added_up_by_owner_and_day(redis: Redis):
    store = ExampleStore(redis)
    for owner, seconds in (("a", 10), ("b", 5), ("a", 2.5)):
        run_one(store, owner, seconds)
    store.clock.advance(DAY_S)
    run_one(store, "a", 1)
    own = [Usage(TODAY + timedelta(days=1), "a", 1.0), Usage(TODAY, "a", 12.5)]
    assert usage(redis, "a", store.clock) == own
    assert usage(redis, None, store.clock) == [*own, Usage(TODAY, "b", 5.0)]


def test_jobs_that_never_ran_use_nothing(redis: Redis):
    store = ExampleStore(redis)
    store.client.cancel(store.submit(owner="a").id)
    assert usage(redis, None, store.clock) == []


def test_cancelled_and_failed_jobs_count(redis: Redis):
    store = ExampleStore(redis)
    lease = store.start(owner="a")
    store.clock.advance(4)
    store.client.cancel(lease.job.id)
    store.holder.confirm_cancel(lease)
    assert usage(redis, "a", store.clock) == [Usage(TODAY, "a", 4.0)]


class TestLostWork:
    def test_work_since_the_last_checkpoint_is_lost_in_a_crash(self, redis: Redis):
        store = ExampleStore(redis)
        lease = store.start(owner="a")
        store.clock.advance(10)
        store.holder.save_checkpoint(lease, {"step": 1})
        store.clock.advance(3)
        store.holder.requeue(lease, crashed=True)
        assert store.client.get(lease.job.id).lost_gpu_ms == 3000
        run_again = store.claim()
        store.clock.advance(4)
        store.holder.succeed(run_again, a_result(run_again), {})
        assert usage(redis, "a", store.clock) == [Usage(TODAY, "a", 17.0, 3.0)]
        assert counters(redis)["lost_gpu_seconds", ORDER.plan.task] == 3

    def test_all_gpus_of_a_job_without_a_checkpoint_count(self, redis: Redis):
        store = ExampleStore(redis)
        store.submit(owner="a")
        capability = Capability(
            model="m", tasks=(ORDER.plan.task,), limits={}, device="cpu", dtype="float32", context_parallel=4
        )
        lease = store.holder.claim("a", LEASE_S, capability)
        assert lease is not None
        store.clock.advance(5)
        store.holder.requeue(lease, crashed=False)
        job = store.client.get(lease.job.id)
        assert (job.gpu_ms, job.lost_gpu_ms, job.num_gpus) == (20_000, 20_000, 4)

    def test_number_of_gpus_may_change_while_a_job_runs(self, redis: Redis):
        store = ExampleStore(redis)
        lease = store.start(owner="a")
        for seconds, num_gpus in ((5, 4), (2, 4), (1, 2), (3, None)):
            store.clock.advance(seconds)
            assert store.holder.renew_lease(lease, num_gpus=num_gpus) is None
        store.clock.advance(10)
        store.holder.succeed(lease, a_result(lease), {})
        assert store.client.get(lease.job.id).num_gpus == 2
        # 5 s on one GPU, 3 s on four, 13 s on two
        assert usage(redis, "a", store.clock) == [Usage(TODAY, "a", 43.0)]

    def test_next_attempt_counts_its_own_gpus_only(self, redis: Redis):
        store = ExampleStore(redis)
        lease = store.start(owner="a")
        store.clock.advance(5)
        store.holder.renew_lease(lease, num_gpus=4)
        store.clock.advance(1)
        store.holder.requeue(lease, crashed=False)
        store.clock.advance(100)
        again = store.claim()
        store.clock.advance(2)
        store.holder.requeue(again, crashed=False)
        assert store.client.get(lease.job.id).gpu_ms == 5_000 + 4_000 + 2_000

    def test_uploading_job_takes_no_gpus(self, redis: Redis):
        store = ExampleStore(redis)
        lease = store.start(owner="a")
        store.clock.advance(5)
        store.holder.begin_upload(lease)
        store.holder.renew_lease(lease, num_gpus=4)
        store.clock.advance(5)
        assert store.client.get(lease.job.id).gpu_ms == 5_000

    def test_job_that_crashes_every_time_loses_all(self, redis: Redis):
        store = ExampleStore(redis, max_attempts=2)
        store.submit(owner="a")
        for seconds in (2, 3):
            lease = store.claim()
            store.clock.advance(seconds)
            store.holder.requeue(lease, crashed=True)
        assert store.client.get(lease.job.id).status == "failed"
        assert usage(redis, "a", store.clock) == [Usage(TODAY, "a", 5.0, 5.0)]

    def test_drain_after_a_checkpoint_loses_nothing(self, redis: Redis):
        store = ExampleStore(redis)
        lease = store.start(owner="a")
        store.clock.advance(5)
        store.holder.save_checkpoint(lease, {"step": 1})
        store.holder.requeue(lease, crashed=False)
        assert store.client.get(lease.job.id).lost_gpu_ms == 0

    def test_cancelled_work_is_not_lost_by_a_fault(self, redis: Redis):
        store = ExampleStore(redis)
        lease = store.start(owner="a")
        store.clock.advance(5)
        store.client.cancel(lease.job.id)
        store.holder.requeue(lease, crashed=True)
        assert usage(redis, "a", store.clock) == [Usage(TODAY, "a", 5.0)]


class TestCost:
    def test_job_costs_the_price_that_held_when_it_was_submitted(self, redis: Redis):
        store = ExampleStore(redis)
        for price in ("3.60", "7.2"):
            run_one(store, "a:b", 10, gpu_hour_price=Decimal(price), currency="EUR")
        run_one(store, "a:b", 5, gpu_hour_price=Decimal(36), currency="USD")
        run_one(store, "b", 2)
        assert usage(redis, "a:b", store.clock) == [
            Usage(TODAY, "a:b", 25.0, 0.0, {"EUR": 0.03, "USD": 0.05})
        ]
        assert usage(redis, "b", store.clock) == [Usage(TODAY, "b", 2.0)]
        assert counters(redis)["cost", "EUR"] == pytest.approx(0.03)

    @pytest.mark.parametrize("price", ["", "free", "nan", "-1"])
    def test_unreadable_price_costs_nothing(self, redis: Redis, price: str):
        store = ExampleStore(redis)
        lease = store.start(owner="a", gpu_hour_price=Decimal(1), currency="EUR")
        redis.hset(f"longcat:job:{lease.job.id}", "gpu_hour_price", price)
        store.clock.advance(5)
        assert store.client.get(lease.job.id).gpu_hour_price is None
        store.holder.succeed(lease, a_result(lease), {})
        assert usage(redis, "a", store.clock) == [Usage(TODAY, "a", 5.0)]


def test_usage_is_kept_for_a_month(redis: Redis):
    store = ExampleStore(redis)
    run_one(store, "a", 1)
    (key,) = keys_of(redis, "longcat:usage:*")
    assert NUM_DAYS * DAY_S < redis.ttl(key) <= (NUM_DAYS + 1) * DAY_S
    store.clock.advance((NUM_DAYS - 1) * DAY_S)
    assert len(usage(redis, "a", store.clock)) == 1


@pytest.mark.parametrize("owner", [None, "a"])
def test_all_days_are_read_in_few_round_trips(
    redis: Redis, owner: str | None, monkeypatch: pytest.MonkeyPatch
):
    store = ExampleStore(redis)
    for _ in range(3):
        run_one(store, "a", 1)
        run_one(store, "b", 1)
        store.clock.advance(DAY_S)
    round_trips: list[int] = []
    execute = Pipeline.execute

    def counted(pipeline: Any, *given: Any, **named: Any) -> list[Any]:
        round_trips.append(len(pipeline))
        return execute(pipeline, *given, **named)

    monkeypatch.setattr(Pipeline, "execute", counted)
    days = usage(redis, owner, store.clock)
    assert len(days) == (3 if owner else 6)
    assert len(round_trips) == (1 if owner else 2)
