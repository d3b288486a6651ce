"""Jobs resume after processes of a worker are killed or hang, and no process is left.

`make test` runs one of these tests and `make faults` runs all: each waits until the processes started again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest

from stack.redis_server import RedisServer
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import IMPATIENT, PATIENCE_S, RunningWorker, running_worker


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a Redis that a test may kill."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), redis_program())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def worker(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    with running_worker(tmp_path_factory.mktemp("worker"), redis_server.url, **IMPATIENT) as worker:
        worker.wait_until_ready()
        yield worker


@pytest.fixture
def ranks(worker: RunningWorker) -> Iterator[list[psutil.Process]]:
    """Return the ranks. After the test, check that none of them is left."""
    worker.wait_until_ready()
    ranks = worker.ranks
    yield ranks
    wait_until(lambda: not any(runs(process) for process in ranks))


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def assert_resumes(worker: RunningWorker, job_id: str) -> None:
    """Check that the job succeeds in its second attempt and repeats at most two steps."""
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt) == (None, 2)
    steps = worker.steps(job_id)
    assert sorted(set(steps)) == [(0, step) for step in range(8)]
    assert len(steps) <= 8 + 2  # one was running, one was being saved
    wait_until(lambda: worker.stored(job_id) == worker.results(job_id))


@pytest.mark.faults
def test_job_resumes_after_an_error_on_one_rank(worker, ranks):
    assert_resumes(worker, worker.submit("raises=1 step_s=0.05", num_inference_steps=8))


@pytest.mark.faults
def test_job_resumes_after_a_rank_hung(worker, ranks):
    assert_resumes(worker, worker.submit("hangs=1 step_s=0.05", num_inference_steps=8))


@pytest.mark.integration
def test_job_resumes_after_torchrun_was_killed_with_its_ranks(worker, ranks):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id, 2)
    worker.torchrun.kill()
    assert_resumes(worker, job_id)


@pytest.mark.integration
def test_progress_of_a_job_that_is_queued_again_begins_with_what_is_saved(worker, ranks):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id, 4)
    worker.torchrun.kill()
    worker.wait_for(job_id, "queued")
    (*_, requeued) = worker.job_store.client.events(job_id)
    assert 0 < requeued.progress.fraction < 1
    worker.wait_for(job_id, "succeeded", "failed")
    later = worker.job_store.client.events(job_id, after=requeued.id)
    fractions = [event.progress.fraction for event in (requeued, *later) if event.progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_out_of_memory_on_one_rank_fails_the_job_at_once_and_the_next_one_runs(worker, ranks, rank):
    greedy, next_one = worker.submit(f"memory={rank} always"), worker.submit()
    job = worker.wait_for(greedy, "failed", "succeeded")
    assert (job.error.code, job.attempt) == ("out_of_memory", 1)
    job = worker.wait_for(next_one, "succeeded", "failed")
    assert (job.error, job.attempt) == (None, 1)


@pytest.mark.faults
def test_job_that_always_crashes_its_group_fails_and_the_next_one_runs(worker, ranks):
    poison, next_one = worker.submit("dies=0 always"), worker.submit()
    job = worker.wait_for(poison, "failed")
    assert (job.error.code, job.attempt) == ("worker_crashed", 2)
    wait_until(lambda: worker.stored(poison) == [])
    assert worker.wait_for(next_one, "succeeded", "failed").attempt == 1


@pytest.mark.faults
def test_job_that_crashes_its_group_fails_with_the_reason_of_the_rank_that_failed_first(worker, ranks):
    job = worker.wait_for(worker.submit("raises=1 always"), "failed")
    assert (job.error.code, job.attempt) == ("worker_crashed", 2)
    assert "rank 1: RuntimeError: staged" in job.error.message


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_broken_group_names_the_rank_that_had_no_memory_to_load(worker, ranks, rank):
    starving = worker.checkpoint / "starves_in_setup"
    starving.write_text(str(rank))
    ranks[1].kill()
    wait_until(lambda: worker.status().state == "broken", PATIENCE_S)
    assert worker.status().failure == f"rank {rank}: OutOfMemoryError: CUDA out of memory"
    starving.unlink()
    worker.wait_until_ready()
    assert worker.status().failure is None


@pytest.mark.faults
def test_job_continues_while_redis_is_unavailable(worker, redis_server):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id)
    redis_server.kill()
    wait_until(lambda: len(worker.steps(job_id)) == 8)  # the job runs to its end
    spool = worker.folder / "data" / "worker" / "test-0" / "jobs" / job_id
    wait_until((spool / "waiting.json").exists)
    redis_server.start()
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt, len(worker.steps(job_id))) == (None, 1, 8)


@pytest.mark.faults
def test_job_whose_lease_is_lost_writes_no_result(worker):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id)
    supervisor = worker.supervisor
    supervisor.suspend()
    try:
        wait_until(lambda: worker.job_store.maintenance.sweep().requeued)
        claim = worker.job_store.holder.claim("another group", 600)
    finally:
        supervisor.resume()
    assert (claim.job.id, claim.fence) == (job_id, 2)
    worker.wait_until_ready()
    assert worker.job_store.holder.renew_lease(claim) is None
    assert [key for key in worker.stored(job_id) if key.startswith("1/")] == []
    worker.job_store.client.cancel(job_id)
    worker.job_store.holder.confirm_cancel(claim)


@pytest.mark.faults
def test_job_resumes_after_the_supervisor_was_killed_and_no_rank_is_left(worker, ranks):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id, 3)
    torchrun = worker.torchrun
    worker.supervisor.kill()
    wait_until(lambda: not any(runs(process) for process in [torchrun, *ranks]))
    assert_resumes(worker, job_id)


@pytest.mark.faults
def test_drained_job_is_resumed_by_another_worker_without_repeating_a_step(worker):
    worker.wait_until_ready()
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id, 3)
    assert worker.stop() == 0
    job = worker.job(job_id)
    assert (job.status, job.attempt) == ("queued", 0)
    assert not worker.survivors()
    done = len(worker.steps(job_id))
    (worker.checkpoint / "dies_in_setup").write_text("1")
    worker.start()
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt) == (None, 1)
    assert len(worker.steps(job_id)) == 8
    assert done >= 4
    assert (worker.checkpoint / "dies_in_setup").read_text() == "0"


@pytest.mark.faults
def test_killed_launcher_leaves_no_process(worker):
    worker.wait_until_ready()
    processes = worker.look()
    worker.parent.send_signal(signal.SIGKILL)
    worker.parent.wait()
    wait_until(lambda: not any(runs(process) for process in processes))
