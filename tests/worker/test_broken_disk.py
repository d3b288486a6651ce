"""A worker whose disk cannot be written any more gives its job to another one, and continues once it can."""

from __future__ import annotations

import pytest

from jobs.registration import live_groups
from stack.redis_server import RedisServer
from tests.disks import BREAKS, mounted_disk
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import running_worker

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("how", ["read-only", pytest.param("no inodes", marks=pytest.mark.soak)])
def test_job_whose_disk_breaks_runs_elsewhere_and_loses_no_attempt(tmp_path, how):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with (
        mounted_disk(here / "data" / "worker") as disk,
        RedisServer(tmp_path / "redis", redis_program()) as redis,
        running_worker(here, redis.url) as worker,
    ):
        worker.wait_until_ready()
        ranks = worker.ranks
        job_id = worker.submit("step_s=0.3", num_inference_steps=8)
        worker.wait_for_step(job_id, 2)
        BREAKS[how](disk)
        job = worker.wait_for(job_id, "queued", "failed", "succeeded")
        assert (job.status, job.attempt, job.error) == ("queued", 0, None)
        wait_until(lambda: [group.state for group in live_groups(worker.redis)] == ["full"])
        with running_worker(elsewhere, redis.url, worker_name="other", storage=here / "data" / "storage"):
            job = worker.wait_for(job_id, "failed", "succeeded")
        assert (job.group, job.attempt, job.error) == ("other-0", 1, None)
        disk.repair()
        job = worker.wait_for(worker.submit(), "failed", "succeeded")
        assert (job.group, job.attempt, job.error) == ("test-0", 1, None)
        assert worker.ranks == ranks
