"""A worker keeps its model and its job while Redis stalls, refuses writes or is full."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.jobs.test_ill_redis import become_a_replica, fill_up, miss_replicas, recover, refuse_to_save
from tests.redis_fleet import RedisProcess
from tests.waiting import wait_until
from tests.worker.running_worker import RunningWorker, running_worker

pytestmark = pytest.mark.faults

NUM_STEPS = 35
LEASE_S = 5
STEPS_WHILE_ILL = 20  # of 0.3 s: longer than the lease


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def worker(server: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    with running_worker(tmp_path_factory.mktemp("worker"), server.url, lease_s=LEASE_S) as worker:
        worker.wait_until_ready()
        yield worker


def stall(server: RedisProcess, _: object) -> None:
    server.send(signal.SIGSTOP)


@pytest.mark.parametrize(
    "fall_ill",
    [
        stall,
        become_a_replica,
        fill_up,
        *(pytest.param(one, marks=pytest.mark.soak) for one in (refuse_to_save, miss_replicas)),
    ],
)
def test_running_job_goes_on_and_succeeds_in_its_first_attempt(
    server: RedisProcess, worker: RunningWorker, fall_ill: Callable[[RedisProcess, object], None]
):
    worker.wait_until_ready()
    supervisor, ranks = worker.supervisor.pid, worker.ranks
    job_id = worker.submit("step_s=0.3", num_inference_steps=NUM_STEPS)
    worker.wait_for_step(job_id)
    with server.client() as admin:
        done = len(worker.steps(job_id))
        fall_ill(server, admin)
        wait_until(lambda: len(worker.steps(job_id)) >= min(done + STEPS_WHILE_ILL, NUM_STEPS))
        server.send(signal.SIGCONT)
        recover(admin)
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.status, job.attempt, job.error) == ("succeeded", 1, None)
    assert len(worker.steps(job_id)) == NUM_STEPS
    assert (worker.supervisor.pid, worker.ranks) == (supervisor, ranks)
