"""Estimates for queued jobs follow from recent runs and the state of the queue."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.capability import Capability
from jobs.errors import GenerationFailed
from jobs.fleet import Fleet, Pool
from jobs.record import Progress
from jobs.registration import GroupStatus
from jobs.requirement import Requirement
from jobs.store.estimates import NUM_RUNS, Run, expected_s
from jobs.store.queue_depths import recent_runs
from tests.jobs.examples import ORDER, ExampleStore, a_result
from tests.orders import make_order

HALF = make_order(ORDER, num_frames=45, num_inference_steps=25)


def run(store: ExampleStore, seconds: float, **fields) -> None:
    """Submit a job, run it for a time, and let it succeed."""
    claim = store.start(**fields)
    store.clock.advance(seconds)
    store.holder.succeed(claim, a_result(claim), {})


def eta_s(store: ExampleStore, job_id: str) -> float | None:
    return store.estimate(job_id).eta_s


def queued_work_units(redis: Redis) -> int:
    return int(redis.get("longcat:queued_work_units") or 0)


def test_no_eta_before_a_job_has_succeeded(store: ExampleStore):
    assert eta_s(store, store.submit().id) is None


def test_no_estimate_for_a_job_that_is_not_queued(store: ExampleStore):
    run(store, 10)
    assert store.client.estimate(store.start().job.id) is None
    assert store.client.estimate("nothing") is None


def test_job_of_the_same_size_takes_as_long(store: ExampleStore):
    run(store, 80)
    assert eta_s(store, store.submit().id) == pytest.approx(80, abs=0.01)


def test_smaller_job_takes_less_time(store: ExampleStore):
    run(store, 80)
    share = 45 * 25 / (93 * 50)
    assert eta_s(store, store.submit(order=HALF).id) == pytest.approx(80 * share, abs=0.01)


def test_jobs_ahead_in_the_queue_add_their_time(store: ExampleStore):
    run(store, 80)
    jobs = [store.submit() for _ in range(3)]
    assert [eta_s(store, job.id) for job in jobs] == pytest.approx([80, 160, 240], abs=0.1)


def test_running_jobs_add_their_remaining_time(store: ExampleStore):
    run(store, 80)
    store.start()
    waiting = store.submit()
    store.clock.advance(30)
    assert eta_s(store, waiting.id) == pytest.approx(50 + 80, abs=0.1)


def test_remaining_time_of_a_running_job_follows_from_runs_of_its_task(store: ExampleStore):
    long = make_order(ORDER, task="long_video")
    run(store, 80)
    run(store, 160, order=long)
    store.start(order=long)
    assert eta_s(store, store.submit().id) == pytest.approx(160 + 80, abs=0.1)


def test_jobs_that_other_groups_run_are_not_waited_for(store: ExampleStore):
    text_to_video = Capability(model="m", tasks=("text_to_video",), limits={}, device="cpu", dtype="float32")
    group = GroupStatus(group="a", state="ready")
    fleet = Fleet((Pool("pool", text_to_video, (group,)),))
    for task in ("long_video", "text_to_video"):
        order = make_order(ORDER, task=task)
        job = store.submit(order=order, requirement=Requirement.of(order))
    estimate = store.client.estimate(job.id, fleet)
    assert estimate
    assert (estimate.position, store.position(job.id)) == (1, 2)


def test_broken_group_does_not_shorten_the_wait(store: ExampleStore):
    run(store, 80)
    capability = Capability(model="m", tasks=(ORDER.plan.task,), limits={}, device="cpu", dtype="float32")
    groups = (GroupStatus(group="a", state="ready"), GroupStatus(group="b", state="broken"))
    fleet = Fleet((Pool("pool", capability, groups),))
    jobs = [store.submit() for _ in range(2)]
    estimates = store.client.estimates([job.id for job in jobs], fleet)
    assert [estimates[job.id].eta_s for job in jobs] == pytest.approx([80, 160], abs=0.1)


def test_more_groups_shorten_the_wait(store: ExampleStore, redis: Redis):
    run(store, 80)
    redis.sadd("longcat:groups", "a", "b")
    jobs = [store.submit() for _ in range(4)]
    assert [eta_s(store, job.id) for job in jobs] == pytest.approx([80, 80, 160, 160], abs=0.1)


def test_job_waits_for_the_first_group_that_is_free(store: ExampleStore, redis: Redis):
    run(store, 80)
    redis.sadd("longcat:groups", "a", "b", "c")
    for _ in range(3):
        store.start()
        store.clock.advance(20)
    jobs = [store.submit() for _ in range(5)]
    waits_s = [20, 40, 60, 20 + 80, 40 + 80]
    assert [eta_s(store, job.id) for job in jobs] == pytest.approx(
        [wait_s + 80 for wait_s in waits_s], abs=0.1
    )


def test_group_that_runs_several_jobs_takes_one_when_the_first_of_them_ends(
    store: ExampleStore, redis: Redis
):
    run(store, 80)
    redis.sadd("longcat:groups", "a")
    for _ in range(2):
        store.start()
        store.clock.advance(20)
    assert eta_s(store, store.submit().id) == pytest.approx(40 + 80, abs=0.1)


def test_sample_of_running_jobs_stands_for_all(store: ExampleStore, redis: Redis):
    run(store, 80)
    redis.sadd("longcat:groups", *range(50))
    for _ in range(48):
        store.start()
    store.clock.advance(20)
    jobs = [store.submit() for _ in range(51)]
    found = [eta_s(store, jobs[number].id) for number in (1, 2, 49, 50)]
    assert found == pytest.approx([80, 140, 140, 160], abs=0.1)


def test_single_outlier_does_not_change_the_estimate(store: ExampleStore):
    for seconds in (80, 80, 4000, 80):
        run(store, seconds)
    assert eta_s(store, store.submit().id) == pytest.approx(80, abs=0.01)


def of_steps(num_inference_steps: int):
    return make_order(ORDER, num_inference_steps=num_inference_steps)


def test_fixed_time_of_every_job_is_told_apart_from_time_per_work_unit(store: ExampleStore):
    for steps, seconds in ((10, 30), (20, 50), (40, 90)):
        run(store, seconds, order=of_steps(steps))
    for steps, seconds in ((30, 70), (5, 20), (50, 110)):
        job = store.submit(order=of_steps(steps), priority="high")
        assert eta_s(store, job.id) == pytest.approx(seconds, abs=0.1)
        store.client.cancel(job.id)


def test_fixed_time_may_be_less_than_a_second():
    runs = [Run("refine", 100, 1.5), Run("refine", 200, 2.5)]
    assert expected_s(runs, "refine", 300) == pytest.approx(3.5)


def test_runs_of_the_same_size_come_before_the_line(store: ExampleStore):
    for steps, seconds in ((10, 30), (20, 50), (40, 500), (40, 510), (40, 505), (10, 30), (20, 50)):
        run(store, seconds, order=of_steps(steps))
    assert eta_s(store, store.submit(order=of_steps(40)).id) == pytest.approx(505, abs=0.1)


def test_outlier_of_one_size_does_not_change_other_sizes(store: ExampleStore):
    for steps, seconds in ((10, 30), (20, 50), (40, 90), (30, 9000), (50, 110)):
        run(store, seconds, order=of_steps(steps))
    assert eta_s(store, store.submit(order=of_steps(45)).id) == pytest.approx(100, abs=1)


def test_runs_of_the_same_task_are_preferred(store: ExampleStore):
    run(store, 80)
    long = make_order(ORDER, task="long_video")
    run(store, 160, order=long)
    assert eta_s(store, store.submit(order=long, priority="high").id) == pytest.approx(160, abs=0.01)


def test_queued_work_units_follow_the_queue(store: ExampleStore, redis: Redis):
    jobs = [store.submit(order=order) for order in (ORDER, HALF, ORDER)]
    store.client.cancel(jobs[2].id)
    claim = store.claim()
    store.holder.requeue(claim, crashed=False)
    assert queued_work_units(redis) == 480 * 832 * 2 * (93 * 50 + 45 * 25)
    for _ in range(2):
        store.holder.confirm_cancel(store.claim())
    assert queued_work_units(redis) == 0


def test_eta_reported_by_a_running_job_replaces_the_estimate_of_its_rest(store: ExampleStore):
    run(store, 80)
    claim = store.start()
    waiting = store.submit()
    store.holder.renew_lease(claim, Progress(phase="denoise", eta_s=300))
    assert eta_s(store, waiting.id) == pytest.approx(300 + 80)


def test_other_tasks_are_used_while_there_is_no_run_of_this_one():
    runs = [Run("text_to_video", 100, 10.0), Run("text_to_video", 200, 20.0)]
    assert expected_s(runs, "refine", 300) == pytest.approx(30)


def test_recent_runs_are_read_from_the_latest_on(store: ExampleStore, redis: Redis):
    for seconds in (1, 2, 3):
        run(store, seconds, order=of_steps(seconds))
    redis.rpush("longcat:recent_runs", "refine", "refine 0 1500")
    found = recent_runs(redis)
    assert [each.duration_s for each in found] == [3, 2, 1, 1.5]
    assert found[-1] == Run("refine", work_units=1, duration_s=1.5)


def test_only_the_latest_runs_count():
    runs = [Run("refine", 100, 10.0)] * NUM_RUNS + [Run("refine", 100, 99.0)] * 79
    assert expected_s(runs, "refine", 100) == 10


def test_store_keeps_a_limited_number_of_runs(store: ExampleStore, redis: Redis):
    for _ in range(105):
        run(store, 1)
    assert redis.llen("longcat:recent_runs") == 100


def test_failed_and_cancelled_jobs_are_no_recent_runs(store: ExampleStore, redis: Redis):
    store.holder.fail(store.start(), GenerationFailed("no"), {})
    store.holder.confirm_cancel(store.start())
    assert not redis.exists("longcat:recent_runs")
