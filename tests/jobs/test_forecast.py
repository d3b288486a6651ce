"""When a queued job will have ended, judged by what recent ones took; and how far that was from what came."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.measures import measures
from tests.jobs.examples import LEASE_S, ORDER, Desk, a_result

HALF = ORDER.model_copy(update={"num_frames": 45, "num_inference_steps": 25})


def run(desk: Desk, seconds: float, **fields) -> None:
    """A job from its submission to its end."""
    claim = desk.start(**fields)
    desk.clock.advance(seconds)
    desk.ledger.succeed(claim, a_result(claim), {})


def eta_s(desk: Desk, job_id: str) -> float | None:
    return desk.ledger.outlook(job_id).eta_s


def test_nothing_is_said_before_a_job_was_seen_to_end(desk: Desk):
    assert eta_s(desk, desk.submit().id) is None


def test_a_job_that_is_not_queued_has_none(desk: Desk):
    run(desk, 10)
    assert desk.ledger.outlook(desk.start().job.id) is None
    assert desk.ledger.outlook("nothing") is None


def test_a_job_like_the_last_takes_as_long(desk: Desk):
    run(desk, 80)
    assert eta_s(desk, desk.submit().id) == pytest.approx(80, abs=0.01)


def test_a_smaller_job_takes_less(desk: Desk):
    run(desk, 80)
    share = 45 * 25 / (93 * 50)
    assert eta_s(desk, desk.submit(order=HALF).id) == pytest.approx(80 * share, abs=0.01)


def test_who_waits_behind_others_waits_for_them_too(desk: Desk):
    run(desk, 80)
    jobs = [desk.submit() for _ in range(3)]
    assert [eta_s(desk, job.id) for job in jobs] == pytest.approx([80, 160, 240], abs=0.1)


def test_running_jobs_count_with_what_is_left_of_them(desk: Desk):
    run(desk, 80)
    desk.start()
    waiting = desk.submit()
    desk.clock.advance(30)
    assert eta_s(desk, waiting.id) == pytest.approx(50 + 80, abs=0.1)


def test_more_groups_are_done_sooner(desk: Desk, redis: Redis):
    run(desk, 80)
    redis.sadd("longcat:groups", "a", "b")
    jobs = [desk.submit() for _ in range(4)]
    assert [eta_s(desk, job.id) for job in jobs] == pytest.approx([80, 80, 160, 200], abs=0.1)


def test_one_job_that_took_far_longer_does_not_count(desk: Desk):
    for seconds in (80, 80, 4000, 80):
        run(desk, seconds)
    assert eta_s(desk, desk.submit().id) == pytest.approx(80, abs=0.01)


def test_tasks_have_paces_of_their_own(desk: Desk):
    run(desk, 80)
    long = ORDER.model_copy(update={"task": "long_video"})
    run(desk, 160, order=long)
    assert eta_s(desk, desk.submit(order=long, priority="high").id) == pytest.approx(160, abs=0.01)


def test_what_was_told_at_submission_is_held_against_what_came(desk: Desk, redis: Redis):
    run(desk, 80)
    run(desk, 100)
    found = {(m.name, m.label): m for m in measures(redis)}
    sums = [found["forecast_seconds", kind].sum for kind in ("predicted", "actual", "error")]
    assert sums == pytest.approx([80, 100, 20], abs=0.01)
    assert found["forecast_ratio", ""].sum == pytest.approx(1.25, abs=0.001)


def test_the_work_that_waits_is_counted_in_and_out(desk: Desk, redis: Redis):
    jobs = [desk.submit(order=order) for order in (ORDER, HALF, ORDER)]
    desk.ledger.cancel(jobs[2].id)
    claim = desk.claim()
    desk.ledger.requeue(claim, crashed=False)
    assert int(redis.get("longcat:queued_work")) == 480 * 832 * 2 * (93 * 50 + 45 * 25)
    for _ in range(2):
        desk.ledger.acknowledge_cancel(desk.ledger.claim("a", LEASE_S))
    assert int(redis.get("longcat:queued_work")) == 0
