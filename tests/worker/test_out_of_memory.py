"""A job of the real model that finds no memory fails alone, wherever that is, and groups go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stack.redis_server import RedisServer
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker

pytestmark = pytest.mark.faults

WARM, RESTARTED = 0, 1


@pytest.fixture(scope="module", params=[2, pytest.param("auto", marks=pytest.mark.soak)])
def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[RunningWorker]:
    """Run a worker with two groups of two ranks, or with four ranks that its jobs share."""
    with starving_worker(tmp_path_factory.mktemp("worker"), tiny_checkpoint, 4, request.param) as worker:
        yield worker


@contextmanager
def starving_worker(
    folder: Path, checkpoint: Path, ranks: int, context_parallel: int | str
) -> Iterator[RunningWorker]:
    settings = {
        "rank_module": "tests.worker.starving_rank",
        "checkpoint": checkpoint,
        "ranks": ranks,
        "context_parallel": context_parallel,
        "stall_s": 300,  # a rank that waits for one that failed alone is not what ends the group
        "step_stall_s": 300,
    }
    with (
        RedisServer(folder / "redis", redis_program()) as redis,
        running_worker(folder, redis.url, **settings) as worker,
    ):
        yield worker


def ranks_of_groups(worker: RunningWorker) -> set[frozenset[int]]:
    """Return the processes of each group, once all are ready."""
    ranks: dict[int, set[int]] = {}
    wait_until(lambda: len(worker.ranks) == 4, PATIENCE_S)
    worker.wait_until_ready()
    for rank in worker.ranks:
        ranks.setdefault(rank.ppid(), set()).add(rank.pid)
    assert [len(group) for group in ranks.values()] in ([2, 2], [4])
    return {frozenset(group) for group in ranks.values()}


@pytest.mark.parametrize(
    ("place", "rank", "restarts"),
    [
        ("lora", "1", WARM),
        ("denoise", "all", WARM),
        ("decode", "0", RESTARTED),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in (
                ("encode", "0", WARM),
                ("lora", "0", WARM),
                ("lora", "all", WARM),
                ("denoise", "0", RESTARTED),
                ("denoise", "1", RESTARTED),
                ("decode", "1", RESTARTED),
                ("decode", "all", WARM),
            )
        ),
    ],
)
def test_job_without_memory_fails_at_once_and_other_jobs_run(worker, place, rank, restarts):
    before = ranks_of_groups(worker)
    neighbour = worker.submit("step_s=0.2", num_inference_steps=40)
    worker.wait_for(neighbour, "running")
    starving = worker.submit(f"{place}={rank}", distilled=place == "lora")
    job = worker.wait_for(starving, "failed", "succeeded")
    assert (job.error and job.error.code, job.attempt) == ("out_of_memory", 1)
    next_ones = [worker.submit("a cat", distilled=distilled) for distilled in (False, True)]
    for job_id in (*next_ones, neighbour):
        job = worker.wait_for(job_id, "succeeded", "failed")
        assert (job.error, job.attempt) == (None, 1)
    assert len(before - ranks_of_groups(worker)) == restarts


@pytest.mark.parametrize("place", ["denoise", "decode"])
def test_job_that_runs_out_of_memory_alone_gets_back_the_rank_that_it_shared(
    tmp_path, tiny_checkpoint, place
):
    with starving_worker(tmp_path, tiny_checkpoint, 2, "auto") as worker:
        worker.wait_until_ready()
        ranks = worker.ranks
        first = worker.submit(f"{place}=<2 step_s=0.2", num_inference_steps=30)
        wait_until(lambda: (progress := worker.job(first).progress) and progress.step > 1, PATIENCE_S)
        second = worker.submit("step_s=0.2", num_inference_steps=40)
        jobs = [worker.wait_for(job_id, "succeeded", "failed") for job_id in (first, second)]
        assert [(job.error, job.attempt) for job in jobs] == [(None, 1)] * 2
        assert worker.ranks == ranks
        log = (worker.folder / "worker.log").read_text()
    assert f"job {first} ran out of memory on ranks" in log
