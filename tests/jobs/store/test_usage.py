"""The GPU time of ended jobs is added up by owner and day."""

from __future__ import annotations

from datetime import date, timedelta

from redis import Redis

from jobs.store.usage import NUM_DAYS, Usage, usage
from tests.jobs.examples import ExampleStore, a_result, keys_of

TODAY = date(2023, 11, 14)
DAY_S = 86400


def run_one(store: ExampleStore, owner: str, seconds: float) -> None:
    lease = store.start(owner=owner)
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


def test_usage_is_kept_for_a_month(redis: Redis):
    store = ExampleStore(redis)
    run_one(store, "a", 1)
    (key,) = keys_of(redis, "longcat:usage:*")
    assert NUM_DAYS * DAY_S < redis.ttl(key) <= (NUM_DAYS + 1) * DAY_S
    store.clock.advance((NUM_DAYS - 1) * DAY_S)
    assert len(usage(redis, "a", store.clock)) == 1
