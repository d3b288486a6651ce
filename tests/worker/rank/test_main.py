from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.worker.examples import ORDER
from worker.channel import Channel, listen
from worker.messages import GroupFailed, RunJob, StopJob
from worker.rank.main import EXIT_FAILED, SupervisorConnection
from worker.settings import WorkerSettings

JOB = RunJob(job_id="j", order=ORDER, folder=Path("/spool/j"))


class Ends:
    """The connection of a rank, and the supervisor's end of it."""

    def __init__(self) -> None:
        rank, supervisor = socket.socketpair()
        self.supervisor = Channel(supervisor)
        self.disconnected = threading.Event()
        self.connection = SupervisorConnection(Channel(rank), self.disconnected.set)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    with closing(ends.supervisor), closing(ends.connection):
        yield ends


def test_jobs_are_received_in_order(ends):
    for job_id in ("a", "b"):
        ends.supervisor.send(JOB.model_copy(update={"job_id": job_id}))
    assert [ends.connection.next_job().job_id for _ in range(2)] == ["a", "b"]


def test_stop_request_applies_only_to_its_job(ends):
    ends.supervisor.send(StopJob(job_id="j", reason="preempt"))
    wait_until(lambda: ends.connection.stop_request("j") == "preempt")
    assert ends.connection.stop_request("other") is None


def test_stop_request_ends_with_the_next_attempt_of_the_job(ends):
    ends.supervisor.send(StopJob(job_id="j", reason="preempt"))
    ends.supervisor.send(JOB)
    assert ends.connection.next_job() == JOB
    assert ends.connection.stop_request("j") is None


def test_sent_messages_arrive(ends):
    ends.connection.send(GroupFailed(message="lost"))
    assert ends.supervisor.recv() == GroupFailed(message="lost")


def test_closed_connection_is_noticed_by_the_rank(ends):
    assert not ends.disconnected.is_set()
    ends.supervisor.close()
    assert ends.disconnected.wait(30)


def test_close_ends_the_receiving_thread():
    ends = Ends()
    with closing(ends.supervisor):
        ends.connection.close()  # returns once the thread has ended
        assert ends.supervisor.recv() is None


@pytest.mark.integration
def test_reason_of_a_failed_start_reaches_the_supervisor(tmp_path):
    setup = WorkerSettings(device="cuda", checkpoint=tmp_path).rank_setup(tmp_path / "socket")
    command = [sys.executable, "-m", "worker.rank.main", setup.model_dump_json(), str(os.getpid())]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with listen(setup.socket) as listening:
        listening.settimeout(60)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as rank:
            with closing(Channel(listening.accept()[0])) as supervisor:
                message = supervisor.recv()
            assert rank.wait() == EXIT_FAILED
    assert isinstance(message, GroupFailed)
    assert "no GPU can be used" in message.message
