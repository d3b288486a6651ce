"""Jobs start by priority, and fairly between owners."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from jobs.capability import Capability
from jobs.record import Job, QueueEstimate
from jobs.store.listing import JobFilter
from jobs.store.quotas import Quotas
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore
from tests.orders import make_order

NUM_OWNERS, NUM_EACH = 20, 20


def claims_in_order(store: ExampleStore):
    """Yield jobs in the order of their claims, ending each at once."""
    while claim := store.holder.claim("a", LEASE_S):
        store.holder.confirm_cancel(claim)
        yield claim.job


def owners(jobs: list[Job]) -> str:
    return "".join(job.owner for job in jobs)


def submit_each(store: ExampleStore, letters: str, **fields) -> list[Job]:
    """Submit a job for each letter, which is its owner."""
    return [store.submit(owner=owner, **fields) for owner in letters]


class TestManyOwnersWithManyJobs:
    @pytest.mark.parametrize("one_after_the_other", [True, False])
    def test_are_served_evenly_at_all_times(self, store: ExampleStore, one_after_the_other):
        names = [f"owner-{number}" for number in range(NUM_OWNERS)]
        wanted = (
            [name for name in names for _ in range(NUM_EACH)] if one_after_the_other else names * NUM_EACH
        )
        for name in wanted:
            store.submit(owner=name)
        counts = Counter(dict.fromkeys(names, 0))
        for job in claims_in_order(store):
            counts[job.owner] += 1
            assert max(counts.values()) - min(counts.values()) <= 1
        assert set(counts.values()) == {NUM_EACH}

    def test_make_a_new_owner_wait_for_one_round_at_most(self, store: ExampleStore):
        for number in range(NUM_OWNERS * NUM_EACH):
            store.submit(owner=f"owner-{number % NUM_OWNERS}")
        begun = claims_in_order(store)
        list(islice(begun, 333))
        newcomer = store.submit(owner="newcomer")
        assert store.position(newcomer.id) <= NUM_OWNERS + 1
        assert newcomer.id in [job.id for job in islice(begun, NUM_OWNERS + 1)]


class TestFairness:
    def test_many_jobs_of_one_owner_do_not_starve_another(self, store: ExampleStore):
        submit_each(store, "a" * 1000)
        submit_each(store, "b")
        assert owners(list(islice(claims_in_order(store), 2))) == "ab"

    def test_owners_alternate_and_their_jobs_keep_their_order(self, store: ExampleStore):
        jobs = submit_each(store, "aaabbc")
        begun = list(claims_in_order(store))
        assert owners(begun) == "abcaba"
        for owner in "abc":
            assert [job.id for job in begun if job.owner == owner] == [j.id for j in jobs if j.owner == owner]

    def test_equal_virtual_times_are_served_by_submission(self, store: ExampleStore):
        submit_each(store, "zmazma")
        assert owners(list(claims_in_order(store))) == "zmazma"

    def test_owner_that_keeps_submitting_does_not_overtake(self, store: ExampleStore):
        submit_each(store, "aaaab")
        begun = []
        for job in islice(claims_in_order(store), 8):
            begun.append(job)
            if job.owner == "b":
                submit_each(store, "b")
        assert owners(begun) == "abababab"

    def test_idle_owner_earns_no_credit(self, store: ExampleStore):
        submit_each(store, "a" * 10 + "b")
        list(islice(claims_in_order(store), 6))
        submit_each(store, "bbbb")
        assert owners(list(claims_in_order(store))) == "babababaa"

    def test_cancelled_jobs_do_not_advance_virtual_time(self, store: ExampleStore):
        for job in submit_each(store, "a" * 100):
            store.client.cancel(job.id)
        submit_each(store, "bbba")
        assert owners(list(claims_in_order(store))) == "babb"

    def test_priority_comes_before_fairness(self, store: ExampleStore):
        submit_each(store, "ab", priority="low")
        submit_each(store, "aab", priority="high")
        submit_each(store, "b")
        begun = list(claims_in_order(store))
        assert [(job.owner, job.priority) for job in begun] == [
            *[("a", "high"), ("b", "high"), ("a", "high")],
            *[("b", "normal"), ("a", "low"), ("b", "low")],
        ]

    def test_requeued_job_starts_before_all_others(self, store: ExampleStore):
        submit_each(store, "aab")
        claims = [store.claim() for _ in range(3)]
        submit_each(store, "ccc")
        for claim in (claims[2], claims[0]):
            store.holder.requeue(claim, crashed=False)
        assert [store.position(claims[i].job.id) for i in (0, 2)] == [1, 2]
        assert sorted(
            store.position(job.id) for job in store.client.page(JobFilter(("queued",)), 20).jobs
        ) == [1, 2, 3, 4, 5]
        assert [job.id for job in islice(claims_in_order(store), 2)] == [claims[0].job.id, claims[2].job.id]


class TestPositions:
    def test_positions_predict_the_order_of_claims(self, store: ExampleStore):
        submit_each(store, "aabbbacdaaa")
        submit_each(store, "dacb", priority="high")
        list(islice(claims_in_order(store), 5))
        waiting = submit_each(store, "ebad") and store.client.page(JobFilter(("queued",)), 100).jobs
        said = sorted((store.position(job.id), job.id) for job in waiting)
        assert [place for place, _ in said] == list(range(1, len(waiting) + 1))
        assert [job_id for _, job_id in said] == [job.id for job in claims_in_order(store)]

    def test_cancelled_job_moves_up_only_later_jobs_of_its_owner(self, store: ExampleStore):
        jobs = submit_each(store, "aaabb")
        store.client.cancel(jobs[1].id)
        left = [jobs[0], jobs[3], jobs[2], jobs[4]]
        assert [store.position(job.id) for job in left] == [1, 2, 3, 4]
        assert [job.id for job in claims_in_order(store)] == [job.id for job in left]

    def test_job_that_a_group_passes_over_moves_behind_other_owners(self, store: ExampleStore):
        passed_over = store.submit(owner="a", order=make_order(ORDER, distilled=True))
        store.submit(owner="a")
        plain = Capability(model="m", tasks=(ORDER.plan.task,), limits={}, device="cpu", dtype="float32")
        store.holder.claim("without LoRAs", LEASE_S, plain)
        left = [store.submit(owner="b"), passed_over]
        assert [store.position(job.id) for job in left] == [1, 2]
        assert [job.id for job in claims_in_order(store)] == [job.id for job in left]

    def test_positions_of_other_owners_are_hidden(self, store: ExampleStore):
        job = store.submit(owner="me")
        assert store.client.for_owner("you").estimate(job.id) is None
        assert store.client.for_owner("me").estimate(job.id) == QueueEstimate(position=1, eta_s=None)


class TestLimitOnRunningJobs:
    @pytest.fixture
    def store(self, redis) -> ExampleStore:
        return ExampleStore(redis, quotas=Quotas(owner_running_jobs=2, total_running_jobs=3))

    def test_claim_passes_over_an_owner_at_the_limit(self, store: ExampleStore):
        submit_each(store, "aaaa")
        first, _ = store.claim(), store.claim()
        assert store.holder.claim("a", LEASE_S) is None
        store.holder.confirm_cancel(first)
        assert store.claim().job.owner == "a"

    def test_lets_other_owners_pass_up_to_the_total_limit(self, store: ExampleStore):
        submit_each(store, "aaaabb")
        assert owners([store.claim().job for _ in range(3)]) == "aba"
        assert store.holder.claim("a", LEASE_S) is None

    def test_limits_requeued_jobs(self, store: ExampleStore):
        submit_each(store, "aaa")
        claim, _ = store.claim(), store.claim()
        store.holder.requeue(claim, crashed=False)
        store.claim()
        assert store.holder.claim("a", LEASE_S) is None

    def test_needs_no_tickets_while_no_job_may_start(self, store: ExampleStore):
        submit_each(store, "aaaa")
        assert sum(store.maintenance.num_tickets_needed().values()) == 4
        claim, _ = store.claim(), store.claim()
        assert sum(store.maintenance.num_tickets_needed().values()) == 0
        store.holder.confirm_cancel(claim)
        assert sum(store.maintenance.num_tickets_needed().values()) == 2
