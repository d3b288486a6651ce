"""The ranks of one world run several jobs at once, whose number of ranks changes while they run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from jobs.registration import live_groups
from stack.redis_server import RedisServer
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker

NUM_STEPS = 40


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    folder = tmp_path_factory.mktemp("worker")
    settings = {"ranks": 4, "context_parallel": "auto"}
    with (
        RedisServer(folder / "redis", redis_program()) as redis,
        running_worker(folder, redis.url, **settings) as worker,
    ):
        worker.wait_until_ready()
        yield worker


def submit(worker: RunningWorker, num_steps: int = NUM_STEPS, words: str = "") -> str:
    return worker.submit(f"step_s=0.3 {words}", num_inference_steps=num_steps)


def wait_for_width(worker: RunningWorker, job_id: str, width: int) -> None:
    wait_until(lambda: worker.widths(job_id)[-1:] == [width], PATIENCE_S)


@pytest.mark.integration
def test_jobs_share_the_ranks_and_run_every_step_once(worker):
    ranks = worker.ranks
    first = submit(worker)
    wait_for_width(worker, first, 4)
    others = [submit(worker, num_steps=12) for _ in range(3)]
    for job_id in (first, *others):
        wait_for_width(worker, job_id, 1)
    jobs = [worker.wait_for(job_id, "succeeded", "failed") for job_id in (*others, first)]
    assert [(job.error, job.attempt) for job in jobs] == [(None, 1)] * 4
    assert all(worker.steps(job_id) == [(0, step) for step in range(12)] for job_id in others)
    assert worker.steps(first) == [(0, step) for step in range(NUM_STEPS)]
    assert worker.widths(first)[-1] == 4  # the ranks of the others joined it
    assert worker.ranks == ranks
    assert is_monotonic(worker, first)


def is_monotonic(worker: RunningWorker, job_id: str) -> bool:
    events = worker.job_store.client.events(job_id)
    fractions = [event.progress.fraction for event in events if event.progress]
    return all(before <= after for before, after in pairwise(fractions))


@pytest.mark.integration
def test_gpu_time_is_that_of_the_ranks_that_a_job_had(worker):
    worker.wait_until_ready()
    alone = worker.wait_for(submit(worker, num_steps=10), "succeeded")
    ran_s = alone.timings_s["denoise"]
    assert alone.num_gpus == 4
    assert alone.gpu_ms / 1000 >= 3 * ran_s  # for a moment after the claim it is counted with one GPU


@pytest.mark.integration
def test_cancelled_job_stops_and_leaves_its_ranks_to_the_other(worker):
    worker.wait_until_ready()
    kept = submit(worker)
    wait_for_width(worker, kept, 4)
    cancelled = submit(worker)
    wait_for_width(worker, kept, 2)
    worker.job_store.client.cancel(cancelled)
    worker.wait_for(cancelled, "cancelled")
    wait_for_width(worker, kept, 4)
    assert worker.wait_for(kept, "succeeded", "failed").attempt == 1
    assert worker.steps(kept) == [(0, step) for step in range(NUM_STEPS)]


@pytest.mark.integration
def test_error_of_one_job_does_not_disturb_its_neighbour(worker):
    worker.wait_until_ready()
    ranks = worker.ranks
    kept = submit(worker)
    wait_for_width(worker, kept, 4)
    failed = worker.wait_for(submit(worker, 8, "raises=all always"), "failed", "succeeded")
    assert failed.error.code == "generation_failed"
    assert worker.wait_for(kept, "succeeded", "failed").attempt == 1
    assert worker.steps(kept) == [(0, step) for step in range(NUM_STEPS)]
    assert worker.ranks == ranks


@pytest.mark.integration
def test_job_that_runs_out_of_memory_with_fewer_ranks_gets_them_back(worker):
    worker.wait_until_ready()
    ranks = worker.ranks
    first = submit(worker, 20, "fits=4")
    wait_for_width(worker, first, 4)
    second = submit(worker, 4)
    jobs = [worker.wait_for(job_id, "succeeded", "failed") for job_id in (first, second)]
    assert [(job.error, job.attempt) for job in jobs] == [(None, 1)] * 2
    widths = worker.widths(first)
    assert (widths.count(2), widths[-1]) == (1, 4)  # it failed in the first step with two ranks
    assert sorted(set(worker.steps(first))) == [(0, step) for step in range(20)]
    assert len(worker.steps(first)) == 20 + 1
    assert worker.steps(second) == [(0, step) for step in range(4)]
    assert worker.ranks == ranks


@pytest.mark.integration
def test_job_that_fits_into_no_block_fails_once_it_had_all_ranks(worker):
    worker.wait_until_ready()
    ranks = worker.ranks
    first = submit(worker, 20)
    wait_for_width(worker, first, 4)
    too_large = submit(worker, 4, "fits=8")
    failed = worker.wait_for(too_large, "failed", "succeeded")
    assert (failed.error.code, failed.attempt) == ("out_of_memory", 1)
    assert worker.widths(too_large) == [2, 4]
    assert worker.steps(first) == [(0, step) for step in range(20)]
    assert worker.ranks == ranks


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "is_warm"),
    [
        ("memory=1", False),
        *(pytest.param(*each, marks=pytest.mark.soak) for each in (("memory=0", False), ("starves", True))),
    ],
)
def test_out_of_memory_on_one_rank_fails_its_job_and_costs_the_neighbour_no_attempt(worker, words, is_warm):
    worker.wait_until_ready()
    ranks = worker.ranks
    kept = submit(worker)
    wait_for_width(worker, kept, 4)
    failed = worker.wait_for(submit(worker, 8, f"{words} always"), "failed", "succeeded")
    assert (failed.error.code, failed.attempt) == ("out_of_memory", 1)
    assert re.search(r"\(rank [0-3]\)$", failed.error.message)
    others = [worker.wait_for(job_id, "succeeded", "failed") for job_id in (submit(worker, 4), kept)]
    assert [(job.error, job.attempt) for job in others] == [(None, 1)] * 2
    assert sorted(set(worker.steps(kept))) == [(0, step) for step in range(NUM_STEPS)]
    assert len(worker.steps(kept)) <= NUM_STEPS + 2  # one was running, one was being saved
    assert len(set(worker.ranks) & set(ranks)) == (4 if is_warm else 0)


@pytest.mark.soak
@pytest.mark.faults
def test_world_names_the_rank_that_had_no_memory_to_load(worker):
    worker.wait_until_ready()
    starving = worker.checkpoint / "starves_in_setup"
    starving.write_text("2")
    worker.ranks[0].kill()
    failure = "rank 2: OutOfMemoryError: CUDA out of memory"
    wait_until(lambda: failure in {group.failure for group in live_groups(worker.redis)}, PATIENCE_S)
    starving.unlink()
    worker.wait_until_ready()


@pytest.mark.faults
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.soak), 3])
def test_only_the_job_of_a_killed_rank_loses_an_attempt(worker, number):
    worker.wait_until_ready()
    jobs = [submit(worker, 20)]
    wait_for_width(worker, jobs[0], 4)
    jobs.append(submit(worker, 20))
    for job_id in jobs:
        wait_for_width(worker, job_id, 2)
    worker.ranks[number].kill()
    ended = [worker.wait_for(job_id, "succeeded", "failed") for job_id in jobs]
    assert [job.error for job in ended] == [None, None]
    assert sorted(job.attempt for job in ended) == [1, 2]
    for job_id in jobs:
        assert sorted(set(worker.steps(job_id))) == [(0, step) for step in range(20)]
        assert len(worker.steps(job_id)) <= 22


@pytest.mark.faults
@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.soak) for number in (1, 2))])
def test_rank_killed_during_a_change_loses_no_job(worker, number):
    worker.wait_until_ready()
    first = submit(worker, 20)
    wait_for_width(worker, first, 4)
    second = submit(worker, 12)  # the first is told to stop after its step
    worker.wait_for(second, "running")
    worker.ranks[number].kill()
    ended = [worker.wait_for(job_id, "succeeded", "failed") for job_id in (first, second)]
    assert [job.error for job in ended] == [None, None]
    assert max(job.attempt for job in ended) <= 2
    for job_id, num_steps in ((first, 20), (second, 12)):
        assert sorted(set(worker.steps(job_id))) == [(0, step) for step in range(num_steps)]
        assert len(worker.steps(job_id)) <= num_steps + 2


@pytest.mark.faults
def test_drained_jobs_of_a_world_are_resumed_without_repeating_a_step(worker):
    worker.wait_until_ready()
    jobs = [submit(worker, 15) for _ in range(3)]
    for job_id in jobs:
        worker.wait_for_step(job_id, 2)
    assert worker.stop() == 0
    assert [(worker.job(job_id).status, worker.job(job_id).attempt) for job_id in jobs] == [("queued", 0)] * 3
    assert not worker.survivors()
    worker.start()
    for job_id in jobs:
        job = worker.wait_for(job_id, "succeeded", "failed")
        assert (job.error, job.attempt) == (None, 1)
        assert worker.steps(job_id) == [(0, step) for step in range(15)]
