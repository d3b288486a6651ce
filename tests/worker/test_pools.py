"""Whole workers with different checkpoints serve one queue."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from jobs.fleet import read_fleet
from jobs.queue import TicketQueue
from jobs.storage.keys import new_job_id
from jobs.store.submission import Submission
from tests.orders import make_order
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker

pytestmark = pytest.mark.integration

REAL = {"rank_module": "worker.rank.main", "ranks": 1, "stall_s": 120, "step_stall_s": 120}


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same form with other weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / "other"
    subprocess.run([sys.executable, "-m", "model.tiny", str(folder), "--seed", "1"], check=True)
    return folder


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(workers: ExitStack, redis_url: str, tmp_path: Path, name: str, **settings: object) -> RunningWorker:
    folder = tmp_path / name
    folder.mkdir()
    shared = {"worker_name": name, "storage": tmp_path / "storage"}
    return workers.enter_context(running_worker(folder, redis_url, **{**REAL, **shared, **settings}))


def submit(redis: Redis, worker: RunningWorker, **changes: object) -> str:
    order = make_order(ORDER, **changes)
    job = worker.job_store.client.submit(Submission(new_job_id(), order)).job
    TicketQueue(redis).enqueue(job.id, job.requirement or "")
    return job.id


def test_group_without_loras_leaves_distilled_jobs_to_a_full_one(
    workers: ExitStack, redis: Redis, redis_server: str, tmp_path: Path, tiny_checkpoint: Path
):
    plain_checkpoint = tmp_path / "plain-checkpoint"
    shutil.copytree(tiny_checkpoint, plain_checkpoint, ignore=shutil.ignore_patterns("lora"))
    full = start(workers, redis_server, tmp_path, "full", checkpoint=tiny_checkpoint)
    start(workers, redis_server, tmp_path, "plain", checkpoint=plain_checkpoint)
    wait_until(lambda: len(read_fleet(redis).live) == 2, PATIENCE_S)

    distilled = [submit(redis, full, distilled=True, num_inference_steps=2) for _ in range(12)]
    plain = [submit(redis, full, num_inference_steps=2) for _ in range(4)]
    jobs = {job_id: full.wait_for(job_id, "succeeded", "failed") for job_id in (*distilled, *plain)}
    assert [job.error for job in jobs.values()] == [None] * 16
    assert {jobs[job_id].group for job_id in distilled} == {"full-0"}
    assert "plain-0" in {jobs[job_id].group for job_id in plain}


@pytest.mark.soak
def test_named_models_run_side_by_side(
    workers: ExitStack,
    redis: Redis,
    redis_server: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    other_checkpoint: Path,
):
    base = start(workers, redis_server, tmp_path, "base", checkpoint=tiny_checkpoint)
    start(workers, redis_server, tmp_path, "canary", checkpoint=other_checkpoint, model_id="canary")
    wait_until(lambda: len(read_fleet(redis).live) == 2, PATIENCE_S)
    ordered = ["canary", "LongCat-Video", "canary", "LongCat-Video"]
    jobs = [base.wait_for(submit(redis, base, model=model), "succeeded", "failed") for model in ordered]
    assert [job.result and job.result.model for job in jobs] == ordered
    fingerprints = [job.result and job.result.weights["transformer"] for job in jobs]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1] == fingerprints[3]


@pytest.mark.soak
def test_job_saved_with_other_weights_begins_again_and_says_so(
    workers: ExitStack,
    redis: Redis,
    redis_server: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    other_checkpoint: Path,
):
    worker = start(workers, redis_server, tmp_path, "worker", checkpoint=tiny_checkpoint)
    wait_until(lambda: len(read_fleet(redis).live) == 1, PATIENCE_S)
    job_id = submit(redis, worker, num_inference_steps=50, num_frames=33)
    wait_until(lambda: redis.hexists(f"longcat:job:{job_id}", "checkpoint"), PATIENCE_S)
    worker.stop()
    assert worker.job(job_id).status == "queued"

    worker.settings["LONGCAT_CHECKPOINT"] = str(other_checkpoint)
    worker.start()
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert job.warnings == ("the job began again: its saved state was computed with other weights",)
    assert job.result is not None
    assert job.result.weights["transformer"] == read_fleet(redis).first().capability.weights["transformer"]
    again = worker.wait_for(
        submit(redis, worker, num_inference_steps=50, num_frames=33), "succeeded", "failed"
    )
    assert again.result is not None
    assert again.result.sha256 == job.result.sha256
