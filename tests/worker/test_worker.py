"""The ranks of a worker keep running however its jobs end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import av
import numpy as np
import psutil
import pytest

from stack.redis_server import RedisServer
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import RunningWorker, running_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    folder = tmp_path_factory.mktemp("worker")
    settings = {"max_claimed_jobs": 2, "preempt_after_s": 0}
    with (
        RedisServer(folder / "redis", redis_program()) as redis,
        running_worker(folder, redis.url, **settings) as worker,
    ):
        worker.wait_until_ready()
        yield worker


@pytest.fixture
def warm(worker: RunningWorker) -> Iterator[list[psutil.Process]]:
    """Return the ranks. After the test, check that they are the same processes."""
    worker.wait_until_ready()
    ranks = worker.ranks
    yield ranks
    worker.wait_for(worker.submit(), "succeeded")
    assert worker.ranks == ranks


def test_video_of_a_succeeded_job_matches_its_result(worker, warm):
    job = worker.wait_for(
        worker.submit(seed=4, num_segments=3, num_condition_frames=5), "succeeded", "failed"
    )
    assert job.error is None
    result = job.result
    assert (result.width, result.height, result.num_frames, result.fps, result.seed) == (96, 64, 17, 15, 4)
    assert result.dtype == "float32"
    video = b"".join(worker.storage.read(result.video_key))
    assert (len(video), hashlib.sha256(video).hexdigest()) == (result.size_bytes, result.sha256)
    with av.open(str(worker.folder / "data" / "storage" / result.video_key)) as container:
        greys = [int(np.median(f.to_ndarray(format="gray"))) for f in container.decode(video=0)]
    assert len(greys) == 17
    assert greys == sorted(greys)


def test_success_leaves_only_the_result_files(worker, warm):
    job_id = worker.submit()
    worker.wait_for(job_id, "succeeded")
    wait_until(lambda: worker.stored(job_id) == worker.results(job_id))
    spool = worker.folder / "data" / "worker" / "test-0" / "jobs"
    wait_until(lambda: not (spool / job_id).exists())


def test_progress_never_decreases_and_ends_at_1(worker, warm):
    job_id = worker.submit("step_s=0.4")
    job = worker.wait_for(job_id, "succeeded")
    progresses = [event.progress for event in worker.job_store.client.events(job_id) if event.progress]
    fractions = [progress.fraction for progress in progresses]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {"denoise", "upload"} <= {progress.phase for progress in progresses}
    assert any(progress.eta_s for progress in progresses)
    assert job.timings_s["denoise"] >= 1.6


def test_error_on_all_ranks_fails_only_the_job(worker, warm):
    job = worker.wait_for(worker.submit("raises=all"), "failed")
    assert (job.error.code, job.attempt) == ("generation_failed", 1)
    assert "staged" in job.error.message


def test_out_of_memory_on_all_ranks_fails_only_the_job(worker, warm):
    job = worker.wait_for(worker.submit("memory=all"), "failed")
    assert (job.error.code, job.error.retryable) == ("out_of_memory", False)


def test_out_of_memory_on_rank_0_while_encoding_fails_only_the_job(worker, warm):
    job = worker.wait_for(worker.submit("starves"), "failed")
    assert (job.error.code, job.attempt, worker.steps(job.id)) == ("out_of_memory", 1, [])


def test_cancelled_job_stops_on_all_ranks_at_the_next_step(worker, warm):
    job_id = worker.submit("step_s=0.3", num_inference_steps=100)
    worker.wait_for_step(job_id)
    worker.job_store.client.cancel(job_id)
    worker.wait_for(job_id, "cancelled")
    assert len(worker.steps(job_id)) < 20
    wait_until(lambda: worker.stored(job_id) == [])


def test_preempted_job_resumes_where_it_stopped_after_the_high_priority_job(worker, warm):
    low = worker.submit("step_s=0.3", priority="low", num_inference_steps=12)
    worker.wait_for_step(low, 2)
    normal, high = worker.submit(), worker.submit(priority="high")
    jobs = [worker.wait_for(job_id, "succeeded", "failed") for job_id in (high, normal, low)]
    assert [(job.error, job.attempt) for job in jobs] == [(None, 1)] * 3
    assert jobs[0].finished_at < jobs[1].finished_at < jobs[2].finished_at
    assert worker.steps(low) == [(0, step) for step in range(12)]  # none was run twice


def test_job_over_its_deadline_stops(worker, warm):
    job_id = worker.submit("step_s=0.3", num_inference_steps=100, max_run_s=0.5)
    job = worker.wait_for(job_id, "failed")
    assert job.error.code == "deadline_exceeded"
    wait_until(lambda: worker.stored(job_id) == [])


def test_group_runs_the_next_job_while_the_storage_is_unavailable(worker, warm):
    storage = worker.folder / "data" / "storage" / "jobs"
    aside = storage.with_name("aside")
    storage.rename(aside)
    storage.touch()  # no folder: nothing can be stored
    first, second, third = worker.submit(), worker.submit(), worker.submit()
    for job_id in (first, second):
        worker.wait_for(job_id, "uploading")
        assert len(worker.steps(job_id)) == 4
    assert worker.job(third).status == "queued"  # two videos wait for the storage
    storage.unlink()
    aside.rename(storage)
    for job_id in (first, second, third):
        job = worker.wait_for(job_id, "succeeded")
        assert (job.attempt, len(worker.steps(job_id))) == (1, 4)


def test_job_cancelled_during_its_upload_never_succeeds(worker, warm):
    storage = worker.folder / "data" / "storage" / "jobs"
    aside = storage.with_name("aside")
    storage.rename(aside)
    storage.touch()
    job_id = worker.submit()
    worker.wait_for(job_id, "uploading")
    worker.job_store.client.cancel(job_id)
    worker.wait_for(job_id, "cancelled")
    storage.unlink()
    aside.rename(storage)
    wait_until(lambda: worker.stored(job_id) == [])
