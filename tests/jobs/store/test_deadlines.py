"""Among the jobs of one owner, the earliest deadline that can be met comes first, and no job starves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from redis import Redis

from jobs.capability import Capability
from jobs.fleet import read_fleet
from jobs.record import Job, QueueEstimate
from jobs.registration import GroupRegistration
from jobs.requirement import Requirement
from jobs.store.listing import JobFilter
from jobs.store.metrics import counters
from jobs.store.submission import Submission
from jobs.work import work_units
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore, a_result
from tests.orders import make_order

DEFAULT_S = 3600.0
PLAIN_ONLY = Capability(model="m", tasks=(ORDER.plan.task,), limits={}, device="cpu", dtype="float32")
"""A group without LoRAs, which cannot run distilled jobs."""


def claimed(store: ExampleStore) -> list[str]:
    """Claim all queued jobs, one after the other, and end each at once. Return their ids."""
    ids = []
    while lease := store.holder.claim("a", LEASE_S):
        ids.append(lease.job.id)
        store.holder.confirm_cancel(lease)
    return ids


def positions(store: ExampleStore, *names: str) -> list[int]:
    return [store.position(name) for name in names]


class TestOrder:
    def test_earliest_deadline_starts_first(self, store: ExampleStore):
        for name, deadline_s in [("c", 900), ("a", 60), ("d", 1200), ("b", 300)]:
            store.submit(id=name, deadline_s=deadline_s)
        assert positions(store, *"abcd") == [1, 2, 3, 4]
        assert claimed(store) == ["a", "b", "c", "d"]

    def test_expected_run_counts(self, store: ExampleStore):
        store.submit(id="short", deadline_s=600, expected_run_s=10)
        store.submit(id="long", deadline_s=900, expected_run_s=500)
        assert claimed(store) == ["long", "short"]

    def test_jobs_without_deadlines_keep_their_order(self, store: ExampleStore):
        for number in range(50):
            store.submit(id=f"{number:02}")
        assert claimed(store) == [f"{number:02}" for number in range(50)]

    @pytest.mark.parametrize("deadline_s", [None, 600.0])
    def test_jobs_of_one_millisecond_keep_their_order_when_the_last_digits_of_their_numbers_begin_again(
        self, redis: Redis, store: ExampleStore, deadline_s: float | None
    ):
        redis.set("longcat:submitted", 995)
        names = [f"{number:02}" for number in range(10)]
        for name in names:
            store.submit(id=name, deadline_s=deadline_s)
        assert positions(store, *names) == list(range(1, 11))
        assert claimed(store) == names

    def test_jobs_without_deadlines_keep_their_order_when_the_clock_goes_back(self, store: ExampleStore):
        names = [f"{number:02}" for number in range(6)]
        for name in names:
            store.submit(id=name)
            store.clock.advance(-30)
        assert positions(store, *names) == list(range(1, 7))
        assert claimed(store) == names

    def test_job_behind_an_empty_queue_takes_its_place_by_the_clock_again(self, store: ExampleStore):
        store.submit(id="first")
        store.clock.advance(-30)
        assert claimed(store) == ["first"]
        for name, deadline_s in [("plain", None), ("urgent", DEFAULT_S + 10)]:
            store.submit(id=name, deadline_s=deadline_s)
        assert claimed(store) == ["plain", "urgent"]

    def test_job_without_a_deadline_comes_before_those_that_have_more_time(self, store: ExampleStore):
        store.submit(id="later", deadline_s=DEFAULT_S + 60)
        store.submit(id="plain")
        store.submit(id="sooner", deadline_s=DEFAULT_S - 60)
        assert claimed(store) == ["sooner", "plain", "later"]

    def test_default_deadline_is_the_operators_choice(self, store: ExampleStore):
        store.submit(id="urgent", deadline_s=90, default_deadline_s=60)
        store.submit(id="plain", default_deadline_s=60)
        assert claimed(store) == ["plain", "urgent"]

    def test_order_holds_across_requirements(self, store: ExampleStore):
        distilled = make_order(ORDER, distilled=True)
        store.submit(id="plain", deadline_s=300)
        store.submit(id="distilled", deadline_s=60, order=distilled)
        store.submit(id="late", deadline_s=900, order=distilled)
        store.submit(id="early", deadline_s=30, order=distilled)
        assert positions(store, "early", "distilled", "plain", "late") == [1, 2, 3, 4]
        assert claimed(store) == ["early", "distilled", "plain", "late"]

    def test_group_finds_the_earliest_that_it_can_run(self, store: ExampleStore):
        distilled = make_order(ORDER, distilled=True)
        for name, order in [("x", distilled), ("y", ORDER), ("z", ORDER)]:
            store.submit(
                id=name,
                order=order,
                requirement=Requirement.of(order),
                deadline_s={"x": 10, "y": 500, "z": 100}[name],
            )
        assert not set(distilled.plan.loras) <= set(PLAIN_ONLY.loras)
        lease = store.holder.claim("a", LEASE_S, PLAIN_ONLY)
        assert lease is not None
        assert lease.job.id == "z"

    def test_deadlines_change_nothing_between_owners(self, store: ExampleStore):
        for number in range(3):
            store.submit(id=f"calm-{number}", owner="calm")
        for number in range(3):
            store.submit(id=f"rushed-{number}", owner="rushed", deadline_s=60 - number)
        owners = [name.split("-")[0] for name in claimed(store)]
        assert [owners.count("calm"), owners[:4].count("calm")] == [3, 2]

    def test_earliest_deadline_decides_between_owners_with_equal_shares(self, store: ExampleStore):
        for name, deadline_s in [("a1", 500), ("b1", 300), ("a2", 100)]:
            store.submit(id=name, owner=name[0], deadline_s=deadline_s)
        assert claimed(store) == ["a2", "b1", "a1"]

    def test_priority_comes_before_deadlines(self, store: ExampleStore):
        store.submit(id="low", priority="low", deadline_s=1)
        store.submit(id="high", priority="high", deadline_s=5000)
        assert claimed(store) == ["high", "low"]

    @pytest.mark.parametrize("seed", range(5))
    def test_claims_follow_the_positions(self, store: ExampleStore, seed: int):
        chosen = random.Random(seed)
        for number in range(40):
            store.submit(
                id=f"job-{number}",
                owner=chosen.choice("abc"),
                order=make_order(ORDER, num_inference_steps=chosen.choice([10, 20, 50])),
                deadline_s=chosen.choice([None, 100, 500, 5000]),
                expected_run_s=chosen.choice([0, 50]),
            )
            if number % 9 == 8:
                store.client.cancel(f"job-{chosen.randrange(number)}")
        queued = store.client.page(JobFilter(("queued",)), 100).jobs
        expected = sorted(queued, key=lambda job: store.position(job.id))
        ids = claimed(store)
        by_owner = {job.id: job.owner for job in queued}
        for owner in "abc":  # a cancellation moves an owner's later jobs by an estimate
            assert [name for name in ids if by_owner[name] == owner] == [
                job.id for job in expected if job.owner == owner
            ]


class TestLateJobs:
    def test_job_that_can_never_meet_its_deadline_takes_its_place_among_those_without(
        self, store: ExampleStore
    ):
        store.submit(id="plain")
        store.submit(id="late", deadline_s=10, expected_run_s=10.001)
        store.submit(id="behind")
        assert positions(store, "plain", "late", "behind") == [1, 2, 3]
        assert claimed(store) == ["plain", "late", "behind"]

    def test_job_that_meets_its_deadline_only_if_it_starts_at_once_is_first(self, store: ExampleStore):
        store.submit(id="plain")
        store.submit(id="urgent", deadline_s=10, expected_run_s=10)
        assert positions(store, "urgent", "plain") == [1, 2]
        assert claimed(store) == ["urgent", "plain"]

    def test_job_that_cannot_meet_its_deadline_lets_others_pass(self, store: ExampleStore):
        store.submit(id="late", deadline_s=60)
        store.clock.advance(61)
        store.submit(id="feasible", deadline_s=600)
        assert claimed(store) == ["feasible", "late"]

    def test_position_follows_at_the_next_sweep(self, store: ExampleStore):
        distilled = make_order(ORDER, distilled=True)
        store.submit(id="late", deadline_s=60, order=distilled)
        store.submit(id="plain")
        store.submit(id="later", deadline_s=60, owner="other")
        store.clock.advance(61)
        store.submit(id="feasible", deadline_s=600, order=distilled)
        assert positions(store, "late", "feasible") == [1, 3]
        store.maintenance.sweep()
        assert positions(store, "feasible", "later", "late", "plain") == [1, 2, 3, 4]
        assert claimed(store) == ["feasible", "later", "late", "plain"]

    def test_claim_moves_the_late_jobs_that_sweeps_have_left(self, store: ExampleStore):
        names = [f"late-{number:03}" for number in range(120)]
        for name in names:
            store.submit(id=name, deadline_s=60)
        store.clock.advance(61)
        store.submit(id="feasible", deadline_s=600)
        for _ in range(2):  # each moves fifty
            store.maintenance.sweep()
        assert claimed(store) == ["feasible", *names]

    def test_owner_whose_only_job_is_late_keeps_their_turn(self, store: ExampleStore):
        store.submit(id="late", owner="a", deadline_s=10, order=make_order(ORDER, distilled=True))
        for _ in range(3):
            store.submit(owner="b")
        while store.holder.claim("plain", LEASE_S, PLAIN_ONLY):
            pass
        store.clock.advance(11)
        store.maintenance.sweep()
        store.submit(id="other", owner="c", deadline_s=600)
        assert claimed(store) == ["late", "other"]

    def test_job_that_left_the_queue_is_not_moved(self, redis: Redis, store: ExampleStore):
        store.submit(id="cancelled", deadline_s=60)
        lease = store.start(id="requeued", deadline_s=30)
        store.client.cancel("cancelled")
        store.holder.requeue(lease, crashed=False)
        redis.zadd("longcat:queue:start_by", {"requeued": 1, "unknown": 1})
        store.clock.advance(61)
        store.maintenance.sweep()
        assert redis.exists("longcat:queue:start_by") == 0
        assert claimed(store) == ["requeued"]

    def test_overload_loses_few_deadlines(self, store: ExampleStore):
        """With twice the work that fits, strictly the earliest deadline first would meet hardly any."""
        for number in range(20):
            store.submit(id=f"{number:02}", deadline_s=100 + number * 10, expected_run_s=20)
        met = 0
        while lease := store.holder.claim("a", LEASE_S):
            store.clock.advance(20)
            store.holder.succeed(lease, a_result(lease), {})
            met += store.client.get(lease.job.id).deadline_met or False
        assert met >= 10

    @pytest.mark.parametrize(("deadline_s", "longest_s"), [(10, DEFAULT_S + 600), (None, DEFAULT_S)])
    def test_job_is_not_starved_by_a_stream_of_urgent_ones(
        self, store: ExampleStore, deadline_s: float | None, longest_s: float
    ):
        store.submit(id="patient", deadline_s=deadline_s)
        for minute in range(240):
            store.clock.advance(60)
            store.submit(id=f"urgent-{minute}", deadline_s=600)
            lease = store.claim()
            store.holder.confirm_cancel(lease)
            if lease.job.id == "patient":
                break
        assert minute * 60 <= longest_s

    def test_work_of_a_late_job_is_charged_once(self, store: ExampleStore):
        store.submit(id="late", owner="a", deadline_s=10)
        store.clock.advance(20)
        for number in range(2):
            store.submit(id=f"a{number}", owner="a", deadline_s=600)
            store.submit(id=f"b{number}", owner="b", deadline_s=600)
        assert [name[0] for name in claimed(store)] == ["a", "b", "a", "b", "l"]


class TestOutcome:
    def test_deadline_is_met_by_a_video_in_time(self, redis: Redis, store: ExampleStore):
        outcomes: list[Job] = []
        for seconds in (50, 150):
            store.submit(id=f"job-{seconds}", deadline_s=100)
            lease = store.claim()
            store.clock.advance(seconds)
            store.holder.succeed(lease, a_result(lease), {})
            outcomes.append(store.client.get(lease.job.id))
        assert [job.deadline_met for job in outcomes] == [True, False]
        assert counters(redis)["deadlines", "met"] == 1
        assert counters(redis)["deadlines", "missed"] == 1

    def test_failed_job_missed_it_and_a_cancelled_one_did_neither(self, redis: Redis, store: ExampleStore):
        cancelled = store.submit(deadline_s=100)
        store.client.cancel(cancelled.id)
        assert store.client.get(cancelled.id).deadline_met is None
        assert not [name for name, _ in counters(redis) if name == "deadlines"]

    def test_job_without_one_is_neither(self, store: ExampleStore):
        lease = store.start()
        store.holder.succeed(lease, a_result(lease), {})
        job = store.client.get(lease.job.id)
        assert (job.deadline_at, job.deadline_met) == (None, None)


class TestPrediction:
    def test_position_is_that_which_the_job_would_have(self, store: ExampleStore):
        store.submit(owner="other")
        for deadline_s in (100, 500, None):
            store.submit(owner="own", deadline_s=deadline_s)
        for deadline_s in (50, 300, 2000, 5000, None):
            wanted = Submission(id="new", order=ORDER, owner="own", deadline_s=deadline_s)
            predicted = store.client.predict(wanted).position
            submitted = store.submit(id=f"new-{deadline_s}", owner="own", deadline_s=deadline_s)
            assert predicted == store.position(submitted.id)
            store.client.cancel(submitted.id)

    def test_job_in_time_is_not_expected_behind_one_that_is_late_from_the_start(
        self, redis: Redis, store: ExampleStore
    ):
        plans = {steps: make_order(ORDER, num_inference_steps=steps) for steps in (20, 60, 100)}
        for steps, order in plans.items():
            redis.lpush("longcat:recent_runs", f"{order.plan.task} {work_units(order.plan)} {steps * 200}")
        for name in ("running", "c1", "c2", "c3"):
            store.submit(id=name, order=plans[100])
        store.claim()
        store.clock.advance(10)

        def submit(name: str, steps: int, deadline_s: float) -> QueueEstimate:
            wanted = Submission(id=name, order=plans[steps], deadline_s=deadline_s)
            prediction = store.client.predict(wanted)
            store.client.submit(replace(wanted, expected_run_s=prediction.run_s))
            return prediction

        assert submit("late", 60, deadline_s=1) == QueueEstimate(position=4, eta_s=10 + 3 * 20 + 12, run_s=12)
        assert submit("in time", 20, deadline_s=25) == QueueEstimate(position=1, eta_s=10 + 4, run_s=4)
        assert positions(store, "in time", "c1", "c2", "c3", "late") == [1, 2, 3, 4, 5]
        assert claimed(store) == ["in time", "c1", "c2", "c3", "late"]

    def test_job_is_expected_before_those_that_are_late_since_the_last_sweep(self, store: ExampleStore):
        for owner in ("own", "other"):
            store.submit(id=f"late-{owner}", owner=owner, deadline_s=60)
            store.submit(id=f"plain-{owner}", owner=owner, order=make_order(ORDER, num_inference_steps=100))
        store.clock.advance(61)
        new = Submission(id="new", order=ORDER, owner="own", deadline_s=600)
        predicted = store.client.predict(new).position
        store.client.submit(new)
        assert predicted == store.position("new") == 1
        assert claimed(store) == ["new", "late-other", "late-own", "plain-other", "plain-own"]

    def test_position_is_that_of_a_job_that_takes_as_long_as_expected(
        self, redis: Redis, store: ExampleStore
    ):
        redis.lpush("longcat:recent_runs", f"{ORDER.plan.task} {work_units(ORDER.plan)} 400000")
        store.submit(id="sooner", deadline_s=300)
        assert store.client.predict(Submission(id="new", order=ORDER, deadline_s=600)).position == 1

    def test_job_behind_an_empty_queue_waits_for_those_that_run(self, redis: Redis, store: ExampleStore):
        lease = store.start()
        store.clock.advance(40)
        store.holder.succeed(lease, a_result(lease), {})
        store.start()
        store.clock.advance(10)
        prediction = store.client.predict(Submission(id="new", order=ORDER, deadline_s=10))
        assert prediction == QueueEstimate(position=1, eta_s=30.0 + 40.0, run_s=40.0)

    def test_job_that_its_groups_can_run_comes_behind_all_that_they_can_run(
        self, redis: Redis, store: ExampleStore
    ):
        GroupRegistration(redis, "a", ttl_s=600).heartbeat("ready", 1, capability=PLAIN_ONLY)
        fleet = read_fleet(redis)
        for order in (ORDER, make_order(ORDER, distilled=True), ORDER):
            store.submit(order=order, priority="high")
        new = Submission(id="new", order=ORDER)
        assert store.client.predict(new, fleet).position == 3
        store.client.submit(new)
        assert store.client.estimates(["new"], fleet)["new"].position == 3
        assert store.position("new") == 4

    def test_nothing_is_submitted(self, redis: Redis, store: ExampleStore):
        store.submit(deadline_s=10)
        before = sorted(redis.keys())
        store.client.predict(Submission(id="new", order=ORDER, deadline_s=10))
        assert sorted(redis.keys()) == before

    def test_run_time_is_that_of_jobs_of_this_size(self, store: ExampleStore):
        for _ in range(3):
            lease = store.start()
            store.clock.advance(40)
            store.holder.succeed(lease, a_result(lease), {})
        prediction = store.client.predict(Submission(id="new", order=ORDER, deadline_s=10))
        assert (prediction.position, prediction.run_s) == (1, 40.0)


def test_one_claim_moves_a_limited_number_of_late_jobs(redis: Redis, store: ExampleStore):
    for number in range(120):
        store.submit(id=f"{number:03}", deadline_s=30)
    store.clock.advance(60)
    for num_left in (70, 20, 0):
        assert store.holder.claim("a", LEASE_S)
        left = redis.zcard("longcat:queue:start_by")
        assert num_left - 3 <= left <= num_left, "each claim takes one job as well"
