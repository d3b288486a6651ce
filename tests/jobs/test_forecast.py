"""When a queued job will have ended, judged by what recent ones took; and how far that was from what came."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.record import Progress
from jobs.store.measures import measures
from model.spec.plan import Refinement
from tests.jobs.examples import LEASE_S, ORDER, Desk, a_result
from tests.orders import make_order

HALF = make_order(num_frames=45, num_inference_steps=25)


def run(desk: Desk, seconds: float, **fields) -> None:
    """A job from its submission to its end."""
    claim = desk.start(**fields)
    desk.clock.advance(seconds)
    desk.job_store.holder.succeed(claim, a_result(claim), {})


def eta_s(desk: Desk, job_id: str) -> float | None:
    return desk.job_store.client.estimate(job_id).eta_s


def test_nothing_is_said_before_a_job_was_seen_to_end(desk: Desk):
    assert eta_s(desk, desk.submit().id) is None


def test_a_job_that_is_not_queued_has_none(desk: Desk):
    run(desk, 10)
    assert desk.job_store.client.estimate(desk.start().job.id) is None
    assert desk.job_store.client.estimate("nothing") is None


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


def of_steps(num_inference_steps: int):
    return make_order(num_inference_steps=num_inference_steps)


def test_what_every_job_takes_whatever_its_size_is_told_from_its_work(desk: Desk):
    for steps, seconds in ((10, 30), (20, 50), (40, 90)):
        run(desk, seconds, order=of_steps(steps))
    for steps, seconds in ((30, 70), (5, 20), (50, 110)):
        job = desk.submit(order=of_steps(steps), priority="high")
        assert eta_s(desk, job.id) == pytest.approx(seconds, abs=0.1)
        desk.job_store.client.cancel(job.id)


def test_jobs_of_just_this_work_say_it_best(desk: Desk):
    for steps, seconds in ((10, 30), (20, 50), (40, 500), (40, 510), (40, 505), (10, 30), (20, 50)):
        run(desk, seconds, order=of_steps(steps))
    assert eta_s(desk, desk.submit(order=of_steps(40)).id) == pytest.approx(505, abs=0.1)


def test_one_size_that_took_far_longer_moves_no_other(desk: Desk):
    for steps, seconds in ((10, 30), (20, 50), (40, 90), (30, 9000), (50, 110)):
        run(desk, seconds, order=of_steps(steps))
    assert eta_s(desk, desk.submit(order=of_steps(45)).id) == pytest.approx(100, abs=1)


def test_a_refinement_is_work_too(desk: Desk):
    stage = {"height": 720, "width": 1280, "num_inference_steps": 50, "t_thresh": 0.5, "num_held": 0}
    refined = [make_order(refinement=Refinement(**stage, spatial_only=only)) for only in (True, False)]
    run(desk, 80)
    etas = []
    for order in refined:
        job = desk.submit(order=order)
        etas.append(eta_s(desk, job.id))
        desk.job_store.client.cancel(job.id)
    share = 720 * 1280 * 0.1 / (480 * 832 * 2)
    assert etas == pytest.approx([80 * (1 + share), 80 * (1 + 2 * share)], abs=0.1)


def test_tasks_have_paces_of_their_own(desk: Desk):
    run(desk, 80)
    long = make_order(task="long_video")
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
    desk.job_store.client.cancel(jobs[2].id)
    claim = desk.claim()
    desk.job_store.holder.requeue(claim, crashed=False)
    assert int(redis.get("longcat:queued_work")) == 480 * 832 * 2 * (93 * 50 + 45 * 25)
    for _ in range(2):
        desk.job_store.holder.confirm_cancel(desk.job_store.holder.claim("a", LEASE_S))
    assert int(redis.get("longcat:queued_work")) == 0


class TestTheErrorOfAnETA:
    """As a share of the time that really passed."""

    def errors(self, redis: Redis, kind: str) -> float:
        return sum(m.sum for m in measures(redis) if (m.name, m.label) == ("eta_error_ratio", kind))

    def tell(self, desk: Desk, claim, eta_s: float | None) -> None:
        desk.job_store.holder.renew_lease(claim, Progress(phase="denoise", eta_s=eta_s))

    def test_is_counted_for_what_was_told_in_the_queue(self, desk: Desk, redis: Redis):
        run(desk, 80)
        assert self.errors(redis, "queue") == 0
        run(desk, 100)
        assert self.errors(redis, "queue") == pytest.approx(0.2, abs=0.001)

    def test_is_counted_for_what_was_told_first_in_the_run(self, desk: Desk, redis: Redis):
        claim = desk.start()
        self.tell(desk, claim, None)
        desk.clock.advance(10)
        self.tell(desk, claim, 30)
        desk.clock.advance(10)
        self.tell(desk, claim, 1000)
        desk.clock.advance(10)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert self.errors(redis, "run") == pytest.approx(0.5, abs=0.001)

    def test_is_that_of_the_run_that_made_the_film(self, desk: Desk, redis: Redis):
        claim = desk.start()
        self.tell(desk, claim, 1000)
        desk.clock.advance(10)
        desk.job_store.holder.requeue(claim, crashed=True)
        claim = desk.claim()
        self.tell(desk, claim, 50)
        desk.clock.advance(40)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert self.errors(redis, "run") == pytest.approx(0.25, abs=0.001)

    def test_is_none_where_nothing_was_told(self, desk: Desk, redis: Redis):
        claim = desk.start()
        desk.clock.advance(10)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        self.tell(desk, claim, 5)
        assert self.errors(redis, "run") == self.errors(redis, "queue") == 0


def test_a_balanced_job_is_less_work_and_tells_nothing_of_exact_ones_of_its_size(desk: Desk):
    balanced = make_order(step_cache=0.1)
    run(desk, 80)
    job = desk.submit(order=balanced)
    assert eta_s(desk, job.id) == pytest.approx(0.6 * 80, abs=0.1)
    desk.job_store.client.cancel(job.id)
    run(desk, 30, order=balanced)
    assert eta_s(desk, desk.submit().id) == pytest.approx(80, abs=0.1)
