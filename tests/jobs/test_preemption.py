"""When a job of low priority makes way for one of high priority, and when it does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from jobs.capability import GroupRegistration, GroupState
from jobs.record import Job
from jobs.store.holder import Lease, StopReason
from jobs.store.measures import measures
from jobs.store.quotas import Quotas
from tests.jobs.examples import LEASE_S, Desk, a_result

AFTER_S = 10.0


class Floor:
    """A desk, and groups that show what they do."""

    def __init__(self, redis: Redis, desk: Desk) -> None:
        self.redis, self.desk = redis, desk
        self.seats: dict[str, GroupRegistration] = {}

    def show(self, group: str, state: GroupState, job_id: str | None = None) -> None:
        self.seats.setdefault(group, GroupRegistration(self.redis, group, ttl_s=600)).publish(
            state, ranks=2, job=job_id
        )

    def start(self, group: str = "a", **fields: object) -> Lease:
        """A job, of low priority unless something else is said, that this group works on."""
        self.desk.submit(**{"priority": "low", **fields})
        return self.take(group)

    def take(self, group: str) -> Lease:
        claim = self.desk.claim(group)
        self.show(group, "busy", claim.job.id)
        return claim

    def wait(self, seconds: float = AFTER_S, **fields: object) -> Job:
        """A job of high priority that has waited for so long."""
        job = self.desk.submit(priority="high", **fields)
        self.desk.clock.advance(seconds)
        return job

    def beat(self, claim: Lease) -> StopReason | None:
        return self.desk.job_store.holder.renew_lease(claim, None, AFTER_S)

    def put_back(self, claim: Lease) -> None:
        assert self.desk.job_store.holder.requeue(claim, crashed=False) == "queued"


@pytest.fixture
def floor(redis: Redis, desk: Desk) -> Floor:
    return Floor(redis, desk)


def put_back_by_cause(redis: Redis) -> dict[str, float]:
    return {measure.label: measure.sum for measure in measures(redis) if measure.name == "put_back"}


class TestALowJob:
    def test_makes_way_for_a_high_one_that_has_waited(self, floor: Floor, redis: Redis):
        low = floor.start()
        assert floor.beat(low) is None
        high = floor.wait()
        assert [floor.beat(low) for _ in range(3)] == ["preempt"] * 3
        floor.put_back(low)
        assert floor.take("a").job.id == high.id
        assert put_back_by_cause(redis) == {"preempted": 1.0}

    def test_goes_on_where_it_was_before_later_ones_and_keeps_its_attempts(self, floor: Floor):
        low, later = floor.start(), floor.desk.submit(priority="low")
        floor.desk.job_store.holder.save_checkpoint(low, {"step": 7})
        floor.wait()
        assert floor.beat(low) == "preempt"
        floor.put_back(low)
        high = floor.take("a")
        floor.desk.job_store.holder.succeed(high, a_result(high), {})
        again = floor.take("a")
        assert (again.job.id, again.checkpoint, again.job.attempt) == (low.job.id, {"step": 7}, 1)
        assert floor.beat(again) is None
        assert floor.desk.position(later.id) == 1

    def test_goes_on_unless_that_is_wanted(self, floor: Floor):
        low = floor.start()
        floor.wait()
        assert floor.desk.job_store.holder.renew_lease(low) is None

    def test_goes_on_while_the_high_one_has_not_waited_long_enough(self, floor: Floor):
        low = floor.start()
        floor.wait(AFTER_S - 0.001)
        assert floor.beat(low) is None
        floor.desk.clock.advance(0.001)
        assert floor.beat(low) == "preempt"

    def test_goes_on_while_only_normal_ones_wait(self, floor: Floor):
        low = floor.start()
        floor.desk.submit(priority="normal")
        floor.desk.clock.advance(3600)
        assert floor.beat(low) is None

    def test_goes_on_when_nobody_waits_any_more(self, floor: Floor):
        low = floor.start()
        floor.desk.job_store.client.cancel(floor.wait().id)
        assert floor.beat(low) is None

    def test_is_cancelled_all_the_same(self, floor: Floor):
        low = floor.start()
        floor.wait()
        assert floor.beat(low) == "preempt"
        floor.desk.job_store.client.cancel(low.job.id)
        assert floor.beat(low) == "cancel"
        assert floor.desk.job_store.holder.requeue(low, crashed=False) == "cancelled"

    def test_that_is_done_before_it_stops_succeeds(self, floor: Floor):
        low = floor.start()
        floor.wait()
        assert floor.beat(low) == "preempt"
        assert floor.desk.job_store.holder.succeed(low, a_result(low), {}) == "succeeded"

    def test_whose_group_dies_while_it_stops_has_crashed(self, floor: Floor, redis: Redis):
        low = floor.start()
        floor.wait()
        assert floor.beat(low) == "preempt"
        floor.desk.job_store.holder.requeue(low, crashed=True)
        assert floor.desk.job_store.client.get(low.job.id).attempt == 1


class TestOthersGoOn:
    @pytest.mark.parametrize("priority", ["normal", "high"])
    def test_jobs_of_another_priority(self, floor: Floor, priority: str):
        claim = floor.start(priority=priority)
        floor.wait()
        assert floor.beat(claim) is None

    def test_a_job_whose_film_is_being_stored(self, floor: Floor):
        low = floor.start()
        floor.desk.job_store.holder.begin_upload(low)
        floor.wait()
        assert floor.beat(low) is None

    def test_a_job_whose_group_is_at_the_next_one_already(self, floor: Floor):
        finishing, current = floor.start(), floor.start("a", priority="normal")
        assert floor.seats.keys() == {"a"}
        floor.wait()
        assert (floor.beat(finishing), floor.beat(current)) == (None, None)

    def test_a_job_that_is_not_handed_over_yet(self, floor: Floor):
        floor.desk.submit(priority="low")
        claim = floor.desk.claim("a")
        floor.wait()
        assert floor.beat(claim) is None


class TestNoMoreThanNeeded:
    def test_for_one_waiting_job_one_makes_way_however_many_ask_at_a_time(self, floor: Floor):
        running = [floor.start(group) for group in "abcdef"]
        floor.wait()
        with ThreadPoolExecutor(6) as pool:
            verdicts = [list(pool.map(floor.beat, running)) for _ in range(3)]
        assert sorted(verdicts[0], key=str) == [None] * 5 + ["preempt"]
        assert verdicts[1] == verdicts[2] == verdicts[0]

    def test_for_each_waiting_job_one_makes_way(self, floor: Floor):
        running = [floor.start(group) for group in "abc"]
        floor.wait()
        floor.wait()
        assert sorted(map(floor.beat, running), key=str) == [None, "preempt", "preempt"]

    def test_none_more_between_letting_go_and_taking(self, floor: Floor):
        first, second = floor.start("a"), floor.start("b")
        floor.wait()
        assert floor.beat(first) == "preempt"
        floor.put_back(first)
        assert floor.beat(second) is None

    def test_none_where_an_idle_group_will_take_the_job(self, floor: Floor):
        low = floor.start("a")
        floor.show("b", "ready")
        floor.wait()
        assert floor.beat(low) is None
        floor.show("b", "full")
        assert floor.beat(low) == "preempt"

    def test_an_idle_group_takes_one_of_two(self, floor: Floor):
        running = [floor.start("a"), floor.start("b")]
        floor.show("c", "ready")
        floor.wait()
        floor.wait()
        assert sorted(map(floor.beat, running), key=str) == [None, "preempt"]

    def test_a_high_job_that_was_put_back_may_have_way_made_again(self, floor: Floor):
        first, second = floor.start("a"), floor.start("b")
        floor.wait()
        assert floor.beat(first) == "preempt"
        floor.put_back(first)
        floor.desk.job_store.holder.requeue(floor.take("a"), crashed=True)
        floor.show("a", "starting")
        assert floor.beat(second) == "preempt"


class TestLimitsOnRunningJobs:
    def test_none_makes_way_for_a_job_that_may_not_begin_then_either(self, redis: Redis):
        floor = Floor(redis, Desk.open(redis, quotas=Quotas(owner_running_jobs=1)))
        floor.start("a", owner="x", priority="normal")
        low = floor.start("b", owner="y")
        floor.wait(owner="x")
        assert floor.beat(low) is None

    def test_the_place_of_the_job_that_makes_way_counts_as_free(self, redis: Redis):
        floor = Floor(redis, Desk.open(redis, quotas=Quotas(total_running_jobs=1, owner_running_jobs=1)))
        low = floor.start("a", owner="x")
        high = floor.wait(owner="x")
        assert floor.beat(low) == "preempt"
        floor.put_back(low)
        assert floor.take("a").job.id == high.id


def test_low_jobs_are_done_in_the_end_however_many_high_ones_come_between(floor: Floor):
    low = floor.start()
    for _ in range(5):
        high_job = floor.wait()
        assert floor.beat(low) == "preempt"
        floor.put_back(low)
        high = floor.take("a")
        assert high.job.id == high_job.id
        floor.desk.job_store.holder.succeed(high, a_result(high), {})
        low = floor.take("a")
        floor.desk.job_store.holder.save_checkpoint(low, {"step": low.fence})
    assert (low.job.attempt, low.duration_s) == (1, LEASE_S)
    assert floor.desk.job_store.holder.succeed(low, a_result(low), {}) == "succeeded"
