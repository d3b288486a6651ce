"""A running job of low priority is preempted for a queued job of high priority."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from jobs.record import Job
from jobs.registration import GroupRegistration, GroupState
from jobs.store.holder import Lease, StopReason
from jobs.store.metrics import counters
from jobs.store.quotas import Quotas
from tests.jobs.examples import LEASE_S, ExampleStore, a_result

AFTER_S = 10.0


class Cluster:
    """A store, and groups that publish their status."""

    def __init__(self, redis: Redis, store: ExampleStore) -> None:
        self.redis, self.store = redis, store
        self.registrations: dict[str, GroupRegistration] = {}

    def show(self, group: str, state: GroupState, job_id: str | None = None) -> None:
        self.registrations.setdefault(group, GroupRegistration(self.redis, group, ttl_s=600)).heartbeat(
            state, ranks=2, job=job_id
        )

    def start(self, group: str = "a", **fields: object) -> Lease:
        """Submit a job, of low priority by default, and let this group run it."""
        self.store.submit(**{"priority": "low", **fields})
        return self.take(group)

    def take(self, group: str) -> Lease:
        claim = self.store.claim(group)
        self.show(group, "busy", claim.job.id)
        return claim

    def wait(self, seconds: float = AFTER_S, **fields: object) -> Job:
        """Submit a job of high priority, and let it wait."""
        job = self.store.submit(priority="high", **fields)
        self.store.clock.advance(seconds)
        return job

    def renew_lease(self, claim: Lease) -> StopReason | None:
        return self.store.holder.renew_lease(claim, None, AFTER_S)

    def requeue(self, claim: Lease) -> None:
        assert self.store.holder.requeue(claim, crashed=False) == "queued"


@pytest.fixture
def cluster(redis: Redis, store: ExampleStore) -> Cluster:
    return Cluster(redis, store)


def requeues_by_cause(redis: Redis) -> dict[str, float]:
    return {label: value for (name, label), value in counters(redis).items() if name == "requeues"}


class TestLowPriorityJob:
    def test_is_preempted_for_a_high_priority_job_that_has_waited(self, cluster: Cluster, redis: Redis):
        low = cluster.start()
        assert cluster.renew_lease(low) is None
        high = cluster.wait()
        assert [cluster.renew_lease(low) for _ in range(3)] == ["preempt"] * 3
        cluster.requeue(low)
        assert cluster.take("a").job.id == high.id
        assert requeues_by_cause(redis) == {"preempted": 1.0}

    def test_that_started_because_of_its_long_wait_is_not_preempted(self, cluster: Cluster):
        for waited_s, expected in ((199.9, "preempt"), (200.0, None)):
            job = cluster.store.submit(priority="low", ageing_s=100.0)
            cluster.store.clock.advance(waited_s)
            low = cluster.take("a")
            assert low.job.id == job.id
            high = cluster.wait()
            assert cluster.renew_lease(low) == expected
            cluster.store.holder.confirm_cancel(low)
            cluster.store.client.cancel(high.id)

    def test_resumes_from_its_checkpoint_with_the_same_attempt(self, cluster: Cluster):
        low, later = cluster.start(), cluster.store.submit(priority="low")
        cluster.store.holder.save_checkpoint(low, {"step": 7})
        cluster.wait()
        assert cluster.renew_lease(low) == "preempt"
        cluster.requeue(low)
        high = cluster.take("a")
        cluster.store.holder.succeed(high, a_result(high), {})
        again = cluster.take("a")
        assert (again.job.id, again.checkpoint, again.job.attempt) == (low.job.id, {"step": 7}, 1)
        assert cluster.renew_lease(again) is None
        assert cluster.store.position(later.id) == 1

    def test_continues_if_preemption_is_off(self, cluster: Cluster):
        low = cluster.start()
        cluster.wait()
        assert cluster.store.holder.renew_lease(low) is None

    def test_continues_until_the_high_priority_job_has_waited_long_enough(self, cluster: Cluster):
        low = cluster.start()
        cluster.wait(AFTER_S - 0.001)
        assert cluster.renew_lease(low) is None
        cluster.store.clock.advance(0.001)
        assert cluster.renew_lease(low) == "preempt"

    def test_continues_if_only_normal_jobs_wait(self, cluster: Cluster):
        low = cluster.start()
        cluster.store.submit(priority="normal")
        cluster.store.clock.advance(3600)
        assert cluster.renew_lease(low) is None

    def test_continues_if_the_waiting_job_was_cancelled(self, cluster: Cluster):
        low = cluster.start()
        cluster.store.client.cancel(cluster.wait().id)
        assert cluster.renew_lease(low) is None

    def test_can_be_cancelled_while_it_is_preempted(self, cluster: Cluster):
        low = cluster.start()
        cluster.wait()
        assert cluster.renew_lease(low) == "preempt"
        cluster.store.client.cancel(low.job.id)
        assert cluster.renew_lease(low) == "cancel"
        assert cluster.store.holder.requeue(low, crashed=False) == "cancelled"

    def test_succeeds_if_it_ends_before_it_stops(self, cluster: Cluster):
        low = cluster.start()
        cluster.wait()
        assert cluster.renew_lease(low) == "preempt"
        assert cluster.store.holder.succeed(low, a_result(low), {}) == "succeeded"

    def test_crash_while_it_stops_uses_up_an_attempt(self, cluster: Cluster, redis: Redis):
        low = cluster.start()
        cluster.wait()
        assert cluster.renew_lease(low) == "preempt"
        cluster.store.holder.requeue(low, crashed=True)
        assert cluster.store.client.get(low.job.id).attempt == 1


class TestNotPreempted:
    @pytest.mark.parametrize("priority", ["normal", "high"])
    def test_jobs_of_another_priority(self, cluster: Cluster, priority: str):
        claim = cluster.start(priority=priority)
        cluster.wait()
        assert cluster.renew_lease(claim) is None

    def test_a_job_that_uploads_its_video(self, cluster: Cluster):
        low = cluster.start()
        cluster.store.holder.begin_upload(low)
        cluster.wait()
        assert cluster.renew_lease(low) is None

    def test_a_job_whose_group_runs_the_next_one_already(self, cluster: Cluster):
        finishing, current = cluster.start(), cluster.start("a", priority="normal")
        assert cluster.registrations.keys() == {"a"}
        cluster.wait()
        assert (cluster.renew_lease(finishing), cluster.renew_lease(current)) == (None, None)

    def test_a_job_that_its_group_does_not_run_yet(self, cluster: Cluster):
        cluster.store.submit(priority="low")
        claim = cluster.store.claim("a")
        cluster.wait()
        assert cluster.renew_lease(claim) is None


class TestNoMoreThanNeeded:
    def test_one_waiting_job_preempts_one_job_under_concurrent_renewals(self, cluster: Cluster):
        running = [cluster.start(group) for group in "abcdef"]
        cluster.wait()
        with ThreadPoolExecutor(6) as pool:
            reasons = [list(pool.map(cluster.renew_lease, running)) for _ in range(3)]
        assert sorted(reasons[0], key=str) == [None] * 5 + ["preempt"]
        assert reasons[1] == reasons[2] == reasons[0]

    def test_each_waiting_job_preempts_one_job(self, cluster: Cluster):
        running = [cluster.start(group) for group in "abc"]
        cluster.wait()
        cluster.wait()
        assert sorted(map(cluster.renew_lease, running), key=str) == [None, "preempt", "preempt"]

    def test_no_second_preemption_between_requeue_and_claim(self, cluster: Cluster):
        first, second = cluster.start("a"), cluster.start("b")
        cluster.wait()
        assert cluster.renew_lease(first) == "preempt"
        cluster.requeue(first)
        assert cluster.renew_lease(second) is None

    def test_no_preemption_if_an_idle_group_will_take_the_job(self, cluster: Cluster):
        low = cluster.start("a")
        cluster.show("b", "ready")
        cluster.wait()
        assert cluster.renew_lease(low) is None
        cluster.show("b", "full")
        assert cluster.renew_lease(low) == "preempt"

    def test_idle_group_takes_one_of_two_waiting_jobs(self, cluster: Cluster):
        running = [cluster.start("a"), cluster.start("b")]
        cluster.show("c", "ready")
        cluster.wait()
        cluster.wait()
        assert sorted(map(cluster.renew_lease, running), key=str) == [None, "preempt"]

    def test_two_idle_groups_take_two_of_three_waiting_jobs(self, cluster: Cluster):
        running = [cluster.start(group) for group in "abc"]
        cluster.show("d", "ready")
        cluster.show("e", "ready")
        for _ in range(3):
            cluster.wait()
        assert sorted(map(cluster.renew_lease, running), key=str) == [None, None, "preempt"]

    def test_requeued_high_priority_job_may_preempt_again(self, cluster: Cluster):
        first, second = cluster.start("a"), cluster.start("b")
        cluster.wait()
        assert cluster.renew_lease(first) == "preempt"
        cluster.requeue(first)
        cluster.store.holder.requeue(cluster.take("a"), crashed=True)
        cluster.show("a", "starting")
        assert cluster.renew_lease(second) == "preempt"


class TestLimitsOnRunningJobs:
    def test_no_preemption_for_a_job_that_could_not_start_either(self, redis: Redis):
        cluster = Cluster(redis, ExampleStore(redis, quotas=Quotas(owner_running_jobs=1)))
        cluster.start("a", owner="x", priority="normal")
        low = cluster.start("b", owner="y")
        cluster.wait(owner="x")
        assert cluster.renew_lease(low) is None

    def test_preempted_job_does_not_count_against_the_limit(self, redis: Redis):
        cluster = Cluster(
            redis, ExampleStore(redis, quotas=Quotas(total_running_jobs=1, owner_running_jobs=1))
        )
        low = cluster.start("a", owner="x")
        high = cluster.wait(owner="x")
        assert cluster.renew_lease(low) == "preempt"
        cluster.requeue(low)
        assert cluster.take("a").job.id == high.id


def test_repeatedly_preempted_job_still_succeeds(cluster: Cluster):
    low = cluster.start()
    for _ in range(5):
        high_job = cluster.wait()
        assert cluster.renew_lease(low) == "preempt"
        cluster.requeue(low)
        high = cluster.take("a")
        assert high.job.id == high_job.id
        cluster.store.holder.succeed(high, a_result(high), {})
        low = cluster.take("a")
        cluster.store.holder.save_checkpoint(low, {"step": low.fence})
    assert (low.job.attempt, low.duration_s) == (1, LEASE_S)
    assert cluster.store.holder.succeed(low, a_result(low), {}) == "succeeded"
