"""Limits for each owner and for all: exact, also for many who come at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from redis import Redis

from jobs.errors import LimitReached
from jobs.order import InputFile
from jobs.store.job_store import JobStore
from jobs.store.quotas import Quotas
from tests.jobs.examples import ORDER, Desk, a_submission

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
    """How many of so many attempts at the same time are not refused."""

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
        desk = Desk.open(redis, quotas=Quotas(owner_queued_jobs=2))
        for owner in "aabb":
            desk.submit(owner=owner)
        refused = limit_of(lambda: desk.submit(owner="a"))
        assert (refused.limit, refused.retryable) == ("owner_queued_jobs", True)
        assert refused.retry_after_s > 0
        assert refused.message.startswith("owner_queued_jobs: at most 2")

    def test_are_limited_for_all_together(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(owner_queued_jobs=9, total_queued_jobs=2))
        for owner in "ab":
            desk.submit(owner=owner)
        assert limit_of(lambda: desk.submit(owner="c")).limit == "total_queued_jobs"

    def test_make_room_when_they_begin_or_end(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(total_queued_jobs=2))
        desk.submit()
        cancelled = desk.submit()
        desk.claim()
        desk.submit()
        desk.job_store.client.cancel(cancelled.id)
        desk.submit()
        limit_of(desk.submit)

    def test_that_are_refused_leave_nothing_behind(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(total_queued_jobs=1))
        desk.submit()
        before = sorted(redis.keys())
        limit_of(lambda: desk.submit(owner="b", order=with_input(5)))
        assert sorted(redis.keys()) == before

    def test_that_are_submitted_again_are_no_new_ones(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(total_queued_jobs=1))
        submission = a_submission()
        assert desk.job_store.client.submit(submission).id == desk.job_store.client.submit(submission).id

    def test_that_are_put_back_are_never_refused(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(total_queued_jobs=1))
        claim = desk.start()
        desk.submit()
        assert desk.job_store.holder.requeue(claim, crashed=False) == "queued"
        limit_of(desk.submit)

    def test_are_exactly_so_many_whoever_comes_at_the_same_time(self, redis: Redis):
        job_stores = [
            JobStore(redis, quotas=Quotas(owner_queued_jobs=7, total_queued_jobs=20)) for _ in range(4)
        ]

        def submit(number: int) -> None:
            job_stores[number % 4].client.submit(a_submission(owner=f"owner-{number % 5}"))

        assert how_many_pass(submit, 100) == 20
        queued = {
            f"owner-{i}": job_stores[0].for_owner(f"owner-{i}").client.page(limit=100) for i in range(5)
        }
        assert max(len(jobs) for jobs in queued.values()) <= 7


class TestRunningJobs:
    def test_are_exactly_so_many_whoever_claims_at_the_same_time(self, redis: Redis):
        job_stores = [
            JobStore(redis, quotas=Quotas(owner_running_jobs=2, total_running_jobs=7)) for _ in range(4)
        ]
        for number in range(60):
            job_stores[0].client.submit(a_submission(owner=f"owner-{number % 5}"))
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda number: job_stores[number % 4].holder.claim("a", 60.0), range(40)))
        running = [claim.job.owner for claim in claims if claim]
        assert len(running) == job_stores[0].client.counts()["running"] == 7
        assert max(running.count(owner) for owner in running) <= 2


class TestStoredInputs:
    def test_are_limited_by_the_day(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(owner_input_bytes_per_day=100))
        desk.submit(owner="a", order=with_input(60))
        refused = limit_of(lambda: desk.submit(owner="a", order=with_input(41)))
        assert refused.limit == "owner_input_bytes_per_day"
        assert 0 < refused.retry_after_s <= DAY_S
        desk.submit(owner="a", order=with_input(40))
        desk.submit(owner="b", order=with_input(100))
        desk.submit(owner="a")
        desk.clock.advance(refused.retry_after_s)
        desk.submit(owner="a", order=with_input(100))

    def test_are_limited_for_all_together(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(total_input_bytes_per_day=100))
        desk.submit(owner="a", order=with_input(60))
        refused = limit_of(lambda: desk.submit(owner="b", order=with_input(60)))
        assert refused.limit == "total_input_bytes_per_day"

    def test_are_counted_exactly_whoever_comes_at_the_same_time(self, redis: Redis):
        job_store = JobStore(redis, quotas=Quotas(owner_input_bytes_per_day=100))
        assert how_many_pass(lambda _: job_store.client.submit(a_submission(order=with_input(9))), 40) == 11


class TestRequests:
    @pytest.mark.parametrize("rate", [1, 3, 7, 10, 60, 700])
    def test_pass_as_many_at_once_as_a_second_gives(self, redis: Redis, rate):
        desk = Desk.open(redis, quotas=Quotas(owner_requests_per_s=rate))
        for _ in range(2):
            for _ in range(rate):
                desk.job_store.client.count_request("a")
            refused = limit_of(lambda: desk.job_store.client.count_request("a"))
            assert (refused.limit, refused.retry_after_s) == ("owner_requests_per_s", 1)
            desk.job_store.client.count_request("b")
            desk.clock.advance(1)

    def test_may_be_rarer_than_one_a_second(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(owner_requests_per_s=0.1))
        desk.job_store.client.count_request("a")
        assert limit_of(lambda: desk.job_store.client.count_request("a")).retry_after_s == 10
        desk.clock.advance(10)
        desk.job_store.client.count_request("a")

    def test_that_are_refused_for_their_owner_cost_the_others_nothing(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(owner_requests_per_s=2, total_requests_per_s=4))
        for _ in range(2):
            desk.job_store.client.count_request("a")
        for _ in range(10):
            assert limit_of(lambda: desk.job_store.client.count_request("a")).limit == "owner_requests_per_s"
        for _ in range(2):
            desk.job_store.client.count_request("b")
        assert limit_of(lambda: desk.job_store.client.count_request("c")).limit == "total_requests_per_s"

    def test_pass_exactly_so_many_whoever_comes_at_the_same_time(self, redis: Redis):
        desk = Desk.open(redis, quotas=Quotas(owner_requests_per_s=13))
        assert how_many_pass(lambda _: desk.job_store.client.count_request("a"), 60) == 13

    def test_leave_no_keys_behind_once_paid_for(self, redis: Redis):
        Desk.open(redis, quotas=Quotas(owner_requests_per_s=5)).job_store.client.count_request("a")
        assert 0 < redis.pttl("longcat:rate:a") <= 61_000


def test_without_limits_nothing_is_asked_of_redis_for_a_request(redis: Redis):
    before = redis.info("commandstats")
    JobStore(redis).client.count_request("a")
    assert "cmdstat_evalsha" not in before or (
        redis.info("commandstats")["cmdstat_evalsha"] == before["cmdstat_evalsha"]
    )


def test_limits_are_told_by_what_they_count():
    quotas = replace(Quotas(), owner_requests_per_s=1.0, total_queued_jobs=2, owner_running_jobs=3)
    assert quotas.of_requests == {"owner_requests_per_s": 1.0}
    assert quotas.of_submission == {"total_queued_jobs": 2}
    assert quotas.of_running == {"owner_running_jobs": 3}
