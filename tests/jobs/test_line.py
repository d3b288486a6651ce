"""The order in which jobs are begun: by priority, and fair between owners."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from jobs.record import Job
from jobs.store.quotas import Quotas
from tests.jobs.examples import LEASE_S, Desk

NUM_OWNERS, NUM_EACH = 20, 50


def served(desk: Desk):
    """Jobs as they are begun, each ended at once."""
    while claim := desk.job_store.holder.claim("a", LEASE_S):
        desk.job_store.holder.confirm_cancel(claim)
        yield claim.job


def owners(jobs: list[Job]) -> str:
    return "".join(job.owner for job in jobs)


def submit_each(desk: Desk, letters: str, **fields) -> list[Job]:
    """A job for each letter, which is its owner."""
    return [desk.submit(owner=owner, **fields) for owner in letters]


class TestTwentyOwnersWithFiftyJobsEach:
    @pytest.mark.parametrize("one_after_the_other", [True, False])
    def test_are_served_evenly_at_every_moment(self, desk: Desk, one_after_the_other):
        names = [f"owner-{number}" for number in range(NUM_OWNERS)]
        wanted = (
            [name for name in names for _ in range(NUM_EACH)] if one_after_the_other else names * NUM_EACH
        )
        for name in wanted:
            desk.submit(owner=name)
        counts = Counter(dict.fromkeys(names, 0))
        for job in served(desk):
            counts[job.owner] += 1
            assert max(counts.values()) - min(counts.values()) <= 1
        assert set(counts.values()) == {NUM_EACH}

    def test_do_not_make_a_newcomer_wait_for_more_than_a_round(self, desk: Desk):
        for number in range(NUM_OWNERS * NUM_EACH):
            desk.submit(owner=f"owner-{number % NUM_OWNERS}")
        begun = served(desk)
        list(islice(begun, 333))
        newcomer = desk.submit(owner="newcomer")
        assert desk.position(newcomer.id) <= NUM_OWNERS + 1
        assert newcomer.id in [job.id for job in islice(begun, NUM_OWNERS + 1)]


class TestTurns:
    def test_a_thousand_jobs_do_not_starve_another_owners_one(self, desk: Desk):
        submit_each(desk, "a" * 1000)
        submit_each(desk, "b")
        assert owners(list(islice(served(desk), 2))) == "ab"

    def test_owners_take_turns_and_each_ones_jobs_keep_their_order(self, desk: Desk):
        jobs = submit_each(desk, "aaabbc")
        begun = list(served(desk))
        assert owners(begun) == "abcaba"
        for owner in "abc":
            assert [job.id for job in begun if job.owner == owner] == [j.id for j in jobs if j.owner == owner]

    def test_at_equal_turns_the_first_submitted_is_first_whatever_its_owners_name(self, desk: Desk):
        submit_each(desk, "zmazma")
        assert owners(list(served(desk))) == "zmazma"

    def test_who_always_comes_again_does_not_pass_who_waits(self, desk: Desk):
        submit_each(desk, "aaaab")
        begun = []
        for job in islice(served(desk), 8):
            begun.append(job)
            if job.owner == "b":
                submit_each(desk, "b")
        assert owners(begun) == "abababab"

    def test_who_was_away_has_saved_nothing_up(self, desk: Desk):
        submit_each(desk, "a" * 10 + "b")
        list(islice(served(desk), 6))
        submit_each(desk, "bbbb")
        assert owners(list(served(desk))) == "babababaa"

    def test_jobs_that_are_cancelled_cost_no_turn(self, desk: Desk):
        for job in submit_each(desk, "a" * 100):
            desk.job_store.client.cancel(job.id)
        submit_each(desk, "bbba")
        assert owners(list(served(desk))) == "babb"

    def test_priorities_come_before_turns(self, desk: Desk):
        submit_each(desk, "ab", priority="low")
        submit_each(desk, "aab", priority="high")
        submit_each(desk, "b")
        begun = list(served(desk))
        assert [(job.owner, job.priority) for job in begun] == [
            *[("a", "high"), ("b", "high"), ("a", "high")],
            *[("b", "normal"), ("a", "low"), ("b", "low")],
        ]

    def test_a_job_that_was_put_back_comes_before_all_turns(self, desk: Desk):
        submit_each(desk, "aab")
        claims = [desk.claim() for _ in range(3)]
        submit_each(desk, "ccc")
        for claim in (claims[2], claims[0]):
            desk.job_store.holder.requeue(claim, crashed=False)
        assert [desk.position(claims[i].job.id) for i in (0, 2)] == [1, 2]
        assert [job.id for job in islice(served(desk), 2)] == [claims[0].job.id, claims[2].job.id]


class TestPositions:
    def test_say_the_order_in_which_jobs_will_be_begun(self, desk: Desk):
        submit_each(desk, "aabbbacdaaa")
        submit_each(desk, "dacb", priority="high")
        list(islice(served(desk), 5))
        waiting = submit_each(desk, "ebad") and desk.job_store.client.page(status="queued", limit=100)
        said = sorted((desk.position(job.id), job.id) for job in waiting)
        assert [place for place, _ in said] == list(range(1, len(waiting) + 1))
        assert [job_id for _, job_id in said] == [job.id for job in served(desk)]

    def test_of_others_jobs_are_not_told(self, desk: Desk):
        job = desk.submit(owner="me")
        assert desk.job_store.for_owner("you").client.estimate(job.id) is None
        assert desk.job_store.for_owner("me").client.estimate(job.id).position == 1


class TestALimitOnRunningJobs:
    @pytest.fixture
    def desk(self, redis) -> Desk:
        return Desk.open(redis, quotas=Quotas(owner_running_jobs=2, total_running_jobs=3))

    def test_has_the_claim_pass_over_the_owner_until_one_has_ended(self, desk: Desk):
        submit_each(desk, "aaaa")
        first, _ = desk.claim(), desk.claim()
        assert desk.job_store.holder.claim("a", LEASE_S) is None
        desk.job_store.holder.confirm_cancel(first)
        assert desk.claim().job.owner == "a"

    def test_lets_others_pass_and_holds_for_all_together(self, desk: Desk):
        submit_each(desk, "aaaabb")
        assert owners([desk.claim().job for _ in range(3)]) == "aba"
        assert desk.job_store.holder.claim("a", LEASE_S) is None

    def test_holds_for_jobs_that_were_put_back(self, desk: Desk):
        submit_each(desk, "aaa")
        claim, _ = desk.claim(), desk.claim()
        desk.job_store.holder.requeue(claim, crashed=False)
        desk.claim()
        assert desk.job_store.holder.claim("a", LEASE_S) is None

    def test_awaits_no_worker_while_no_job_may_begin(self, desk: Desk):
        submit_each(desk, "aaaa")
        assert desk.job_store.maintenance.num_tickets_needed() == 4
        claim, _ = desk.claim(), desk.claim()
        assert desk.job_store.maintenance.num_tickets_needed() == 0
        desk.job_store.holder.confirm_cancel(claim)
        assert desk.job_store.maintenance.num_tickets_needed() == 2
