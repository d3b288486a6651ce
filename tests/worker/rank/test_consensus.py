"""What ranks decide from their votes. That real ranks do agree is in `test_worker` and `test_faults`."""

from __future__ import annotations

import pytest

from jobs.record import JobError
from worker.rank.consensus import GroupBroken, StepOutcome, decide

OOM = StepOutcome(error=JobError(code="out_of_memory", message="too large", retryable=False))
FULL = StepOutcome(error=JobError(code="disk_full", message="full", retryable=True))
BUG = StepOutcome(error=JobError(code="generation_failed", message="bug", retryable=False), contained=False)


def test_without_wishes_and_errors_all_go_on():
    assert decide([StepOutcome(), StepOutcome(), StepOutcome()]) == StepOutcome()


@pytest.mark.parametrize("why", ["cancel", "drain", "deadline", "lease_lost"])
def test_the_leader_s_wish_is_everybody_s(why):
    assert decide([StepOutcome(stop=why), StepOutcome()]).stop == why


def test_an_error_of_all_ends_the_job_alone():
    assert decide([BUG, BUG]) == BUG
    assert decide([OOM, OOM]) == OOM


def test_an_error_that_left_one_rank_as_it_was_ends_the_job_alone():
    assert decide([FULL, StepOutcome()]) == FULL
    assert decide([StepOutcome(), OOM]) == OOM


@pytest.mark.parametrize(
    "votes",
    [[BUG, StepOutcome()], [StepOutcome(), BUG], [BUG, BUG, StepOutcome()], [OOM, BUG, StepOutcome()]],
)
def test_an_error_of_some_that_nobody_knows_breaks_the_group(votes):
    with pytest.raises(GroupBroken, match="failed alone"):
        decide(votes)


def test_different_errors_of_all_end_the_job_with_the_leader_s():
    assert decide([OOM, BUG]) == OOM


def test_an_error_counts_more_than_a_wish():
    assert decide([StepOutcome(stop="cancel"), OOM]).error == OOM.error


def test_one_rank_alone_always_agrees_with_itself():
    assert decide([BUG]) == BUG
