"""Limits for each owner and for all owners are exact, also under concurrency."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from jobs.errors import LimitReached
from jobs.order import InputFile
from jobs.store.job_store import JobStore
from jobs.store.quotas import Quotas
from tests.jobs.examples import ORDER, ExampleStore, a_result, a_submission, keys_of

DAY_S = 86400


def limit_of(act: Callable[[], object]) -> LimitReached:
    with pytest.raises(LimitReached) as refused:
        act()
    return refused.value


def with_input(size_bytes: int):
    image = InputFile(
        key="jobs/x/inputs/image.png",
        media_type="image/png",
        size_bytes=size_bytes,
        sha256="0" * 64,
        width=64,
        height=64,
    )
    return ORDER.model_copy(update={"image": image})


def how_many_pass(act: Callable[[int], object], attempts: int) -> int:
    """Return how many of the concurrent attempts are not refused."""

    def passes(number: int) -> bool:
        try:
            act(number)
        except LimitReached:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(passes, range(attempts)))


class TestQueuedJobs:
    def test_are_limited_for_each_owner(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_queued_jobs=2))
        for owner in "aabb":
            store.submit(owner=owner)
        refused = limit_of(lambda: store.submit(owner="a"))
        assert (refused.limit, refused.retryable) == ("owner_queued_jobs", True)
        assert refused.retry_after_s > 0
        assert refused.message.startswith("owner_queued_jobs: at most 2")

    def test_are_limited_for_all_together(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_queued_jobs=9, total_queued_jobs=2))
        for owner in "ab":
            store.submit(owner=owner)
        assert limit_of(lambda: store.submit(owner="c")).limit == "total_queued_jobs"

    def test_no_longer_count_when_they_start_or_end(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(total_queued_jobs=2))
        store.submit()
        cancelled = store.submit()
        store.claim()
        store.submit()
        store.client.cancel(cancelled.id)
        store.submit()
        limit_of(store.submit)

    def test_refused_jobs_leave_no_keys(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(total_queued_jobs=1))
        store.submit()
        before = sorted(redis.keys())
        limit_of(lambda: store.submit(owner="b", order=with_input(5)))
        assert sorted(redis.keys()) == before

    def test_resubmitted_jobs_do_not_count_twice(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(total_queued_jobs=1))
        submission = a_submission()
        assert store.client.submit(submission).job.id == store.client.submit(submission).job.id

    def test_requeued_jobs_are_never_refused(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(total_queued_jobs=1))
        claim = store.start()
        store.submit()
        assert store.holder.requeue(claim, crashed=False) == "queued"
        limit_of(store.submit)

    def test_are_limited_exactly_under_concurrent_submissions(self, redis: Redis):
        stores = [JobStore(redis, quotas=Quotas(owner_queued_jobs=7, total_queued_jobs=20)) for _ in range(4)]

        def submit(number: int) -> None:
            stores[number % 4].client.submit(a_submission(owner=f"owner-{number % 5}"))

        assert how_many_pass(submit, 100) == 20
        queued = {
            f"owner-{i}": stores[0].client.for_owner(f"owner-{i}").list_jobs(limit=100) for i in range(5)
        }
        assert max(len(jobs) for jobs in queued.values()) <= 7


class TestRunningJobs:
    @pytest.mark.parametrize(("owner_limit", "expected"), [(2, 7), (1, 5)])
    def test_are_limited_exactly_under_concurrent_claims(self, redis: Redis, owner_limit: int, expected: int):
        quotas = Quotas(owner_running_jobs=owner_limit, total_running_jobs=7)
        stores = [JobStore(redis, quotas=quotas) for _ in range(4)]
        for number in range(60):
            stores[0].client.submit(a_submission(owner=f"owner-{number % 5}"))
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda number: stores[number % 4].holder.claim("a", 60.0), range(40)))
        running = [claim.job.owner for claim in claims if claim]
        assert len(running) == stores[0].client.counts()["running"] == expected
        assert max(running.count(owner) for owner in running) <= owner_limit


class TestStoredInputs:
    def test_are_limited_by_the_day(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_input_bytes_per_day=100))
        store.submit(owner="a", order=with_input(60))
        refused = limit_of(lambda: store.submit(owner="a", order=with_input(41)))
        assert refused.limit == "owner_input_bytes_per_day"
        assert 0 < refused.retry_after_s <= DAY_S
        store.submit(owner="a", order=with_input(40))
        store.submit(owner="b", order=with_input(100))
        store.submit(owner="a")
        store.clock.advance(refused.retry_after_s)
        store.submit(owner="a", order=with_input(100))

    def test_are_limited_for_all_together(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(total_input_bytes_per_day=100))
        store.submit(owner="a", order=with_input(60))
        refused = limit_of(lambda: store.submit(owner="b", order=with_input(60)))
        assert refused.limit == "total_input_bytes_per_day"

    def test_counters_expire_after_their_day(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_input_bytes_per_day=100))
        store.submit(order=with_input(1))
        counters = keys_of(redis, "longcat:input_bytes:*")
        assert len(counters) == 2
        assert all(0 < redis.ttl(counter) <= 2 * DAY_S for counter in counters)

    def test_are_counted_exactly_under_concurrent_submissions(self, redis: Redis):
        store = JobStore(redis, quotas=Quotas(owner_input_bytes_per_day=100))
        assert how_many_pass(lambda _: store.client.submit(a_submission(order=with_input(9))), 40) == 11


class TestGpuTime:
    def run_one(self, store: ExampleStore, seconds: float, **fields: Any) -> None:
        lease = store.start(**fields)
        store.clock.advance(seconds)
        store.holder.succeed(lease, a_result(lease), {})

    def test_is_not_limited_until_it_can_be_expected(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_gpu_s_per_day=1))
        for _ in range(3):
            store.submit(owner="a")

    def test_is_limited_by_the_day_of_submission(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_gpu_s_per_day=100))
        self.run_one(store, 40, owner="a")
        store.submit(owner="a")
        refused = limit_of(lambda: store.submit(owner="a"))
        assert refused.limit == "owner_gpu_s_per_day"
        assert 0 < refused.retry_after_s <= DAY_S
        store.submit(owner="b")
        store.clock.advance(refused.retry_after_s)
        store.submit(owner="a")

    def test_is_corrected_when_a_job_took_less_than_expected(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_gpu_s_per_day=100))
        self.run_one(store, 40, owner="other")
        first, _ = store.submit(owner="a"), store.submit(owner="a")
        limit_of(lambda: store.submit(owner="a"))
        store.client.cancel(first.id)
        store.submit(owner="a")
        limit_of(lambda: store.submit(owner="a"))

    def test_counts_what_a_job_took_if_that_was_more_than_expected(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_gpu_s_per_day=100))
        self.run_one(store, 10, owner="other")
        self.run_one(store, 95, owner="a")
        limit_of(lambda: store.submit(owner="a"))

    def test_counters_expire_after_their_day(self, redis: Redis):
        ExampleStore(redis).submit(owner="a")
        (counter,) = keys_of(redis, "longcat:gpu_budget:*")
        assert 0 < redis.ttl(counter) <= 2 * DAY_S


class TestRequests:
    @pytest.mark.parametrize("rate", [1, 3, 7, 10, 60, 700])
    def test_burst_of_one_second_passes(self, redis: Redis, rate):
        store = ExampleStore(redis, quotas=Quotas(owner_requests_per_s=rate))
        for _ in range(2):
            for _ in range(rate):
                store.client.count_request("a")
            refused = limit_of(lambda: store.client.count_request("a"))
            assert (refused.limit, refused.retry_after_s) == ("owner_requests_per_s", 1)
            store.client.count_request("b")
            store.clock.advance(1)

    def test_may_be_limited_to_less_than_one_a_second(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_requests_per_s=0.1))
        store.client.count_request("a")
        assert limit_of(lambda: store.client.count_request("a")).retry_after_s == 10
        store.clock.advance(10)
        store.client.count_request("a")

    def test_refused_requests_of_one_owner_cost_others_nothing(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_requests_per_s=2, total_requests_per_s=4))
        for _ in range(2):
            store.client.count_request("a")
        for _ in range(10):
            assert limit_of(lambda: store.client.count_request("a")).limit == "owner_requests_per_s"
        for _ in range(2):
            store.client.count_request("b")
        assert limit_of(lambda: store.client.count_request("c")).limit == "total_requests_per_s"

    def test_are_limited_exactly_under_concurrency(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_requests_per_s=13))
        assert how_many_pass(lambda _: store.client.count_request("a"), 60) == 13

    def test_leave_no_keys_behind_once_paid_for(self, redis: Redis):
        ExampleStore(redis, quotas=Quotas(owner_requests_per_s=5)).client.count_request("a")
        assert 0 < redis.pttl("longcat:rate:a") <= 61_000


class TestStoredJobs:
    def test_count_in_any_state_until_they_are_deleted(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_stored_jobs=2))
        cancelled, _ = store.submit(owner="a"), store.submit(owner="a")
        store.client.cancel(cancelled.id)
        refused = limit_of(lambda: store.submit(owner="a"))
        assert (refused.limit, refused.retryable) == ("owner_stored_jobs", True)
        store.submit(owner="b")
        store.client.delete(cancelled.id)
        store.submit(owner="a")

    def test_no_longer_count_when_they_have_expired(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_stored_jobs=1), retention_s=100)
        store.client.cancel(store.submit().id)
        limit_of(store.submit)
        store.clock.advance(101)
        store.maintenance.sweep()
        store.submit()

    def test_are_limited_for_all_together(self, redis: Redis):
        store = ExampleStore(redis, quotas=Quotas(owner_stored_jobs=9, total_stored_jobs=2))
        for owner in "ab":
            store.client.cancel(store.submit(owner=owner).id)
        assert limit_of(lambda: store.submit(owner="c")).limit == "total_stored_jobs"


def test_check_refuses_what_a_submission_would_exceed_and_stores_nothing(redis: Redis):
    store = ExampleStore(redis, quotas=Quotas(owner_queued_jobs=2, owner_input_bytes_per_day=29))
    store.submit(owner="a")
    before = keys_of(redis)
    small, large = (a_submission(owner="a", order=with_input(size_bytes)) for size_bytes in (29, 30))
    assert limit_of(lambda: store.client.check_quotas(small, small)).limit == "owner_queued_jobs"
    assert limit_of(lambda: store.client.check_quotas(large)).limit == "owner_input_bytes_per_day"
    store.client.check_quotas(small)
    assert keys_of(redis) == before


def test_request_without_limits_sends_no_command(redis: Redis):
    before = redis.info("commandstats")
    JobStore(redis).client.count_request("a")
    assert "cmdstat_evalsha" not in before or (
        redis.info("commandstats")["cmdstat_evalsha"] == before["cmdstat_evalsha"]
    )


def test_limits_are_grouped_by_what_they_count():
    quotas = replace(Quotas(), owner_requests_per_s=1.0, total_queued_jobs=2, owner_running_jobs=3)
    assert quotas.of_requests == {"owner_requests_per_s": 1.0}
    assert quotas.of_submission == {"total_queued_jobs": 2}
    assert quotas.of_running == {"owner_running_jobs": 3}
