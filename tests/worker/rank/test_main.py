from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.waiting import wait_until
from tests.worker.examples import ORDER
from worker.channel import Channel
from worker.messages import GroupFailed, RunJob, StopJob
from worker.rank.main import SupervisorConnection, device_type

JOB = RunJob(job_id="j", order=ORDER, folder=Path("/spool/j"))


class Ends:
    """The rank's connection, and the supervisor's end of it."""

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


def test_stop_request_holds_for_its_job_alone(ends):
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


def test_rank_is_told_when_the_supervisor_is_gone(ends):
    assert not ends.disconnected.is_set()
    ends.supervisor.close()
    assert ends.disconnected.wait(30)


def test_close_ends_the_receiving_thread():
    ends = Ends()
    with closing(ends.supervisor):
        ends.connection.close()  # returns once the thread has ended
        assert ends.supervisor.recv() is None


@pytest.mark.parametrize(
    ("device", "has_cuda", "expected"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", False, "cuda"),
    ],
)
def test_device_is_chosen_by_the_setting_and_the_machine(monkeypatch, device, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert device_type(device) == expected
