from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch.distributed as dist

from jobs.capability import Capability
from model.parallel.mesh import ContextParallel
from model.spec.errors import GroupError
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from worker.channel import Channel, listen
from worker.first_failure import read_failure
from worker.messages import GroupFailed, Message, Ready, RunJob, StopJob
from worker.rank.consensus import Consensus
from worker.rank.engine import Engine
from worker.rank.main import (
    EXIT_FAILED,
    LoadEngine,
    Membership,
    SupervisorConnection,
    _memberships,
    _serve,
    check_weights,
    main,
)
from worker.settings import WorkerSettings

JOB = RunJob(job_id="j", order=ORDER, folder=Path("/spool/j"))


class Ends:
    """The connection of a rank, and the supervisor's end of it."""

    def __init__(self) -> None:
        rank, supervisor = socket.socketpair()
        self.rank, self.supervisor = Channel(rank), Channel(supervisor)
        self.disconnected = threading.Event()
        self.connection = SupervisorConnection(self.rank, self.disconnected.set)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    with closing(ends.supervisor), closing(ends.rank):
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


def test_nodes_with_the_same_weights_work_together():
    check_weights([{"vae": "1"}, {}, {"vae": "1"}, {}])
    check_weights([{}, {}])  # of an engine that has no fingerprints


@pytest.mark.parametrize(
    "weights", [{"vae": "2", "dit": "1"}, {"vae": "1"}, {"vae": "1", "dit": "1", "x": "3"}]
)
def test_nodes_with_other_weights_are_refused(weights):
    with pytest.raises(GroupError, match=r"the weights of rank 2 differ from those of rank 0: (vae|dit|x)$"):
        check_weights([{"vae": "1", "dit": "1"}, {}, weights, {}])


class RefusingEngine:
    """An engine that works with two ranks or one."""

    def on(self, parallel: ContextParallel) -> RefusingEngine:
        parallel.check_heads(2)
        return self


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_rank_of_a_world_has_a_place_for_each_width_that_the_engine_accepts(tmp_path):
    settings = WorkerSettings(checkpoint=tmp_path, ranks=4, context_parallel="auto").rank_setup(tmp_path)
    blocks = ContextParallel(wider=(ContextParallel(size=3),))
    memberships = _memberships(cast("Engine", RefusingEngine()), blocks, Consensus(1.0), settings)
    assert {width: place.consensus.size for width, place in memberships.items()} == {1: 1}


@pytest.mark.usefixtures("one_rank")
def test_rank_of_a_fixed_group_has_one_place(tmp_path):
    settings = WorkerSettings(checkpoint=tmp_path).rank_setup(tmp_path)
    engine, world = cast("Engine", RefusingEngine()), Consensus(1.0)
    assert _memberships(engine, ContextParallel(), world, settings) == {1: Membership(engine, world)}


class Served(Exception):
    """The ranks are about to run their first job."""


class FakeSupervisor:
    """Keeps what the leader sends, and has no job for it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def next_job(self) -> RunJob:
        return JOB


class FakeConsensus:
    """The values of four ranks, of which the first two are on the leader's machine."""

    is_leader = True

    def all_gather(self, value: tuple[int, dict[str, str]]) -> list[tuple[int, dict[str, str]]]:
        _, weights = value
        return [(pid, weights) for pid in (11, 12, 11, 13)]

    def broadcast(self, value: RunJob) -> RunJob:
        raise Served


def test_supervisor_learns_of_the_ranks_of_its_own_machine_only(monkeypatch, tmp_path):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    capability = Capability(model="m", tasks=("refine",), limits={}, device="cpu", dtype="float32")
    settings = WorkerSettings(checkpoint=tmp_path, ranks=2, nodes=2, rendezvous="10.0.0.1:29500")
    supervisor, consensus = FakeSupervisor(), cast("Consensus", FakeConsensus())
    with pytest.raises(Served):
        _serve(
            {4: Membership(cast("Engine", SimpleNamespace(capability=capability)), consensus)},
            consensus,
            cast("SupervisorConnection", supervisor),
            settings.rank_setup(tmp_path),
        )
    assert supervisor.sent == [Ready(capability=capability, pids=(11, 12), widths=(4,))]


def test_every_leader_of_a_world_knows_the_weights(monkeypatch, tmp_path):
    """Only the first rank of a machine reads them."""
    weights = {"transformer": "1234"}

    class SecondRank(FakeConsensus):
        def all_gather(self, value):
            return [(11, weights), value]

    leaders: list[Capability | None] = []

    def stop(run, engine, consensus, leader, report_failure):
        leaders.append(leader._capability)
        raise Served

    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("worker.rank.main.run_job", stop)
    capability = Capability(model="m", tasks=("refine",), limits={}, device="cpu", dtype="float32")
    consensus = cast("Consensus", SecondRank())
    consensus.rank = 1
    settings = WorkerSettings(checkpoint=tmp_path, ranks=2, context_parallel="auto")
    memberships = {1: Membership(cast("Engine", SimpleNamespace(capability=capability)), consensus)}
    supervisor = FakeSupervisor()
    supervisor.next_job = lambda: JOB.model_copy(update={"width": 1})  # type: ignore[method-assign]
    supervisor.stop_request = lambda _: None  # type: ignore[attr-defined]
    with pytest.raises(Served):
        _serve(
            memberships, consensus, cast("SupervisorConnection", supervisor), settings.rank_setup(tmp_path)
        )
    assert [leader and leader.weights for leader in leaders] == [weights]


def test_allocator_is_configured_before_a_rank_uses_its_device(monkeypatch, tmp_path):
    order = []

    def choose_device(*_) -> str:
        order.append("device")
        raise GroupError("no device")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr("worker.rank.main.set_up_log", lambda _: None)
    monkeypatch.setattr("worker.rank.main.configure_allocator", lambda: order.append("allocator"))
    monkeypatch.setattr("worker.rank.main.choose_device", choose_device)
    monkeypatch.setattr("worker.rank.main.exit_failed", lambda: None)
    setup = WorkerSettings(checkpoint=tmp_path, ranks=2).rank_setup(tmp_path)
    main(setup.model_dump_json(), cast("LoadEngine", None))
    assert order == ["allocator", "device"]


@pytest.mark.integration
def test_reason_of_a_failed_start_reaches_the_supervisor(tmp_path):
    setup = WorkerSettings(device="cuda", checkpoint=tmp_path).rank_setup(tmp_path / "socket")
    setup = setup.model_copy(update={"failure_file": tmp_path / "failure"})
    command = [sys.executable, "-m", "worker.rank.main", setup.model_dump_json()]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with listen(setup.socket) as listening:
        listening.settimeout(600)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as rank:
            with closing(Channel(listening.accept()[0])) as supervisor:
                message = supervisor.recv()
            assert rank.wait() == EXIT_FAILED
    assert isinstance(message, GroupFailed)
    assert "no GPU can be used" in message.message
    assert read_failure(tmp_path / "failure") == f"rank 0: {message.message}"
