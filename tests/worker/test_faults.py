"""A whole worker whose processes die or hang: jobs go on, once, and nothing is left running.

One of them is in the plain suite, all are in `make faults`: each takes its processes the time to start again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest

from stack.redis_server import RedisServer
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import RunningWorker, running_worker


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that a test may kill."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), redis_program())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def worker(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    with running_worker(tmp_path_factory.mktemp("worker"), redis_server.url) as worker:
        worker.wait_until_ready()
        yield worker


@pytest.fixture
def ranks(worker: RunningWorker) -> Iterator[list[psutil.Process]]:
    """Ranks that the test is going to lose: afterwards none of them is left."""
    worker.wait_until_ready()
    ranks = worker.ranks
    yield ranks
    wait_until(lambda: not any(runs(process) for process in ranks))


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def goes_on(worker: RunningWorker, job_id: str) -> None:
    """The job succeeds at its second attempt, from where it was."""
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt) == (None, 2)
    steps = worker.steps(job_id)
    assert sorted(set(steps)) == [(0, step) for step in range(8)]
    assert len(steps) <= 8 + 2  # one that was being run, one that was being saved
    wait_until(lambda: worker.stored(job_id) == worker.results(job_id))


@pytest.mark.faults
def test_an_error_on_one_rank_breaks_the_group_and_the_job_goes_on(worker, ranks):
    goes_on(worker, worker.submit("raises=1 step_s=0.05", num_inference_steps=8))


@pytest.mark.faults
def test_a_rank_that_hangs_is_noticed_and_the_job_goes_on(worker, ranks):
    goes_on(worker, worker.submit("hangs=1 step_s=0.05", num_inference_steps=8))


def test_killed_torchrun_takes_its_ranks_along_and_the_job_goes_on(worker, ranks):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id, 2)
    worker.torchrun.kill()
    goes_on(worker, job_id)


@pytest.mark.faults
def test_a_job_that_always_kills_its_group_ends_and_the_next_one_runs(worker, ranks):
    poison, next_one = worker.submit("dies=0 always"), worker.submit()
    job = worker.wait_for(poison, "failed")
    assert (job.error.code, job.attempt) == ("worker_crashed", 2)
    wait_until(lambda: worker.stored(poison) == [])
    assert worker.wait_for(next_one, "succeeded", "failed").attempt == 1


@pytest.mark.faults
def test_while_redis_is_away_the_group_works_on_and_nothing_runs_again(worker, redis_server):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id)
    redis_server.kill()
    wait_until(lambda: len(worker.steps(job_id)) == 8)  # to its end, and beyond
    spool = worker.folder / "data" / "worker" / "test-0" / "jobs" / job_id
    wait_until((spool / "waiting.json").exists)
    redis_server.start()
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt, len(worker.steps(job_id))) == (None, 1, 8)


@pytest.mark.faults
def test_who_lost_the_lease_writes_no_result(worker):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id)
    supervisor = worker.supervisor
    supervisor.suspend()
    try:
        wait_until(lambda: worker.job_store.maintenance.sweep().requeued)
        claim = worker.job_store.holder.claim("somebody else", 60)
    finally:
        supervisor.resume()
    assert (claim.job.id, claim.attempt) == (job_id, 2)
    worker.wait_until_ready()
    assert worker.job_store.holder.renew_lease(claim) == "go"
    assert [key for key in worker.stored(job_id) if key.startswith("1/")] == []
    worker.job_store.client.cancel(job_id)
    worker.job_store.holder.confirm_cancel(claim)


@pytest.mark.faults
def test_a_killed_supervisor_leaves_no_rank_and_its_job_goes_on(worker, ranks):
    job_id = worker.submit("step_s=0.3", num_inference_steps=8)
    worker.wait_for_step(job_id, 3)
    torchrun = worker.torchrun
    worker.supervisor.kill()
    wait_until(lambda: not any(runs(process) for process in [torchrun, *ranks]))
    goes_on(worker, job_id)


@pytest.mark.faults
def test_asked_to_end_it_gives_its_job_back_saved_and_another_worker_goes_on(worker):
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
def test_a_killed_parent_leaves_no_process(worker):
    worker.wait_until_ready()
    processes = worker.look()
    worker.parent.send_signal(signal.SIGKILL)
    worker.parent.wait()
    wait_until(lambda: not any(runs(process) for process in processes))
