"""Steps of the clock of Redis's host change no lease, deadline, limit or retention."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from jobs.errors import LimitReached
from jobs.store import scripts
from jobs.store.job_store import JobStore
from jobs.store.quotas import Quotas
from tests.jobs.examples import LEASE_S, a_result, a_submission

HOUR_S = 3600.0
DAY_S = 86400.0
OFFSET = "test:clock_offset_s"


@pytest.fixture(autouse=True)
def _movable_clock(monkeypatch: pytest.MonkeyPatch):
    """Let a test move the server's clock as the scripts see it."""
    original = scripts.source

    def source(name: str) -> str:
        text = original(name)
        return text.replace("time[1] * 1000", f"(time[1] + (redis.call('GET', '{OFFSET}') or 0)) * 1000")

    monkeypatch.setattr("jobs.store.scripts.source", source)


def step(redis: Redis, seconds: float) -> None:
    redis.incrbyfloat(OFFSET, seconds)


every_step = pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, 8 * DAY_S])


class TestSteps:
    @every_step
    def test_queued_job_keeps_its_deadline(self, redis: Redis, step_s: float):
        store = JobStore(redis)
        store.client.submit(a_submission(id="queued", max_queue_s=600.0))
        store.maintenance.sweep()
        step(redis, step_s)
        for _ in range(2):
            assert store.maintenance.sweep().ended == ()
        assert store.client.get("queued").status == "queued"

    @every_step
    def test_running_job_keeps_its_deadline(self, redis: Redis, step_s: float):
        store = JobStore(redis)
        store.client.submit(a_submission(max_run_s=600.0))
        claim = store.holder.claim("a", LEASE_S)
        assert claim is not None
        store.maintenance.sweep()
        step(redis, step_s)
        assert store.holder.renew_lease(claim) is None
        store.maintenance.sweep()
        assert store.holder.renew_lease(claim) is None

    @every_step
    def test_lease_never_ends_later_than_after_its_length(self, redis: Redis, step_s: float):
        store = JobStore(redis)
        store.client.submit(a_submission())
        claim = store.holder.claim("a", LEASE_S)
        assert claim is not None
        store.maintenance.sweep()
        step(redis, step_s)
        store.holder.renew_lease(claim)
        assert store.maintenance.sweep().requeued == ()
        ends_ms = redis.zscore("longcat:leases", claim.job.id)
        now_ms = float(redis.hget("longcat:clock", "now_ms") or 0)
        assert ends_ms is not None
        assert ends_ms - now_ms <= LEASE_S * 1000

    def test_ended_jobs_are_kept_when_the_clock_is_wrong_for_a_moment(self, redis: Redis):
        store = JobStore(redis)
        store.client.submit(a_submission(id="ended"))
        claim = store.holder.claim("a", LEASE_S)
        assert claim is not None
        store.holder.succeed(claim, a_result(claim), {})
        store.maintenance.sweep()
        step(redis, 8 * DAY_S)
        assert store.maintenance.sweep().expired == ()
        step(redis, -8 * DAY_S)
        assert store.maintenance.sweep().expired == ()
        assert store.client.get("ended").status == "succeeded"

    @every_step
    def test_no_request_waits_for_an_hour(self, redis: Redis, step_s: float):
        store = JobStore(redis, quotas=Quotas(owner_requests_per_s=2))
        store.maintenance.sweep()
        store.client.count_request("a")
        step(redis, step_s)
        store.client.count_request("a")
        with pytest.raises(LimitReached) as refusal:
            send_many(store)
        assert refusal.value.retry_after_s <= 2

    def test_bucket_filled_far_in_the_future_is_ignored(self, redis: Redis):
        store = JobStore(redis, quotas=Quotas(owner_requests_per_s=2))
        redis.set("longcat:rate:a", 9e15)
        store.client.count_request("a")
        assert float(redis.get("longcat:rate:a") or 0) < 9e15

    def test_lease_far_in_the_future_is_shortened(self, redis: Redis):
        store = JobStore(redis)
        store.client.submit(a_submission(id="held"))
        store.holder.claim("a", LEASE_S)
        redis.zadd("longcat:leases", {"held": 9e15})
        store.maintenance.sweep()
        store.maintenance.sweep()
        now_ms = float(redis.hget("longcat:clock", "now_ms") or 0)
        assert (redis.zscore("longcat:leases", "held") or 0) <= now_ms + LEASE_S * 1000

    def test_jobs_start_in_the_order_of_submission_although_the_clock_goes_back(self, redis: Redis):
        store = JobStore(redis)
        store.maintenance.sweep()
        step(redis, 20.0)
        store.client.submit(a_submission(id="first"))
        step(redis, -HOUR_S)
        store.client.submit(a_submission(id="second"))
        claims = [store.holder.claim("a", LEASE_S) for _ in range(2)]
        assert [claim and claim.job.id for claim in claims] == ["first", "second"]

    def test_file_of_a_reserved_id_is_not_removed_early(self, redis: Redis):
        store = JobStore(redis)
        store.maintenance.sweep()
        store.client.reserve("reserved")
        step(redis, HOUR_S)
        assert store.maintenance.lease_file_removal() is None

    def test_submission_to_a_process_that_never_swept_follows_no_step(self, redis: Redis):
        JobStore(redis).maintenance.sweep()
        step(redis, 8 * DAY_S)
        job = JobStore(redis).client.submit(a_submission()).job
        now_s = float(redis.hget("longcat:clock", "now_ms") or 0) / 1000
        assert job.created_at.timestamp() - now_s < HOUR_S


class StallingRedis(Redis):
    """A client whose next command may wait for `stall_s` until the server answers."""

    boot_s = 1000.0  # the clock of the processes, which does not step
    stall_s = 0.0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        stall_s, self.stall_s = self.stall_s, 0.0
        self.pass_time(stall_s)
        return super().execute_command(*args, **options)

    def pass_time(self, seconds: float) -> None:
        self.boot_s += seconds
        if seconds:
            step(self, seconds)


class TestStall:
    """Redis hangs for ten minutes, with a sweep on its way according to which a second has passed."""

    STALL_S = 600.0

    @pytest.fixture
    def stalling(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> StallingRedis:
        stalling = StallingRedis(connection_pool=redis.connection_pool)
        monkeypatch.setattr("jobs.store.scripts.time.clock_gettime", lambda _: stalling.boot_s)
        return stalling

    def test_time_of_a_stall_passes(self, redis: Redis, stalling: StallingRedis):
        store = JobStore(stalling)
        store.maintenance.sweep()
        stalling.stall_s = self.STALL_S
        for _ in range(2):
            store.maintenance.sweep()
        assert abs(difference(redis)) <= 0.12 * self.STALL_S * 1000

    def test_process_that_takes_over_after_a_stall_knows_how_long_it_was(
        self, redis: Redis, stalling: StallingRedis
    ):
        store, other = JobStore(stalling), JobStore(stalling)
        store.maintenance.sweep()
        assert other.maintenance.sweep().by_other
        stalling.stall_s = self.STALL_S
        store.maintenance.sweep()
        stalling.pass_time(2.0)
        assert not other.maintenance.sweep().by_other
        assert abs(difference(redis)) <= 0.12 * self.STALL_S * 1000

    def test_lease_does_not_run_out_by_a_stall(self, stalling: StallingRedis):
        store = JobStore(stalling)
        store.client.submit(a_submission())
        claim = store.holder.claim("a", 10.0)
        assert claim is not None
        store.maintenance.sweep()
        stalling.stall_s = self.STALL_S
        for _ in range(2):
            assert store.maintenance.sweep().requeued == ()
        assert store.holder.renew_lease(claim) is None

    def test_deadline_passes_during_a_stall(self, stalling: StallingRedis):
        store = JobStore(stalling)
        store.client.submit(a_submission(id="queued", max_queue_s=60.0))
        store.maintenance.sweep()
        stalling.stall_s = self.STALL_S
        assert store.maintenance.sweep().ended == ()
        assert store.maintenance.sweep().ended == ("queued",)


class TestAdvance:
    def test_time_advances_with_the_server(self, redis: Redis):
        store = JobStore(redis)
        store.maintenance.sweep()
        assert difference(redis) == 0

    def test_downtime_of_all_processes_counts(self, redis: Redis):
        """Nobody can tell a step from a night in which nothing ran, so a fresh process believes the clock."""
        JobStore(redis).maintenance.sweep()
        step(redis, 8 * DAY_S)
        JobStore(redis).maintenance.sweep()
        assert difference(redis) == 0

    def test_difference_is_made_up_for_slowly(self, redis: Redis, monkeypatch: pytest.MonkeyPatch):
        store = JobStore(redis)
        store.maintenance.sweep()
        step(redis, HOUR_S)
        store.maintenance.sweep()
        behind_ms = difference(redis)
        boot_s = 1000.0
        monkeypatch.setattr("jobs.store.scripts.time.clock_gettime", lambda _: boot_s)
        store.maintenance.sweep()
        for _ in range(60):  # ten minutes pass
            boot_s += 10.0
            step(redis, 10.0)
            store.maintenance.sweep()
        assert difference(redis) == pytest.approx(behind_ms - 60_000, rel=0.05)

    def test_time_never_goes_back(self, redis: Redis):
        store = JobStore(redis)
        times: list[float] = []
        for step_s in (0.0, 30.0, -HOUR_S, 0.0, HOUR_S, 0.0):
            step(redis, step_s)
            store.maintenance.sweep()
            times.append(float(redis.hget("longcat:clock", "now_ms") or 0))
        assert times == sorted(times)


def send_many(store: JobStore) -> None:
    """Send more requests than even a slow machine can send in the time in which that many are allowed."""
    for _ in range(1000):
        store.client.count_request("a")


def difference(redis: Redis) -> float:
    """Return how far the scripts' time is behind the server's clock, in milliseconds."""
    server_ms, now_ms = redis.hmget("longcat:clock", "server_ms", "now_ms")
    return float(server_ms or "nan") - float(now_ms or "nan")
