from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.servers import free_port
from worker.health import HealthReports
from worker.rank import nodes, torchrun
from worker.settings import RankSetup, WorkerSettings


class Ended(Exception):
    """The process would have ended here."""


class Torchrun:
    """Records the command line of torchrun, which fails at once if there is an error to raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arguments: list[str] = []
        self.error: Exception | None = None
        self.ends: list[str] = []
        monkeypatch.setattr("torch.distributed.run.main", self._run)
        monkeypatch.setattr(torchrun, "die_with_parent", lambda _: None)
        monkeypatch.setattr(nodes, "end_process", self._end)
        monkeypatch.setattr(nodes, "keep_alive", lambda _, on_beat: on_beat())  # without its threads
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)

    def _run(self, arguments: list[str]) -> None:
        self.arguments = arguments
        if self.error:
            raise self.error

    def _end(self, reason: str) -> None:
        self.ends.append(reason)
        raise Ended

    def option(self, name: str) -> str:
        return self.arguments[self.arguments.index(name) + 1]

    @property
    def setup(self) -> RankSetup:
        return RankSetup.model_validate_json(self.arguments[-2])


@pytest.fixture
def started(monkeypatch) -> Torchrun:
    return Torchrun(monkeypatch)


def run(settings: WorkerSettings, folder: Path, *more: str) -> None:
    setup = settings.rank_setup(folder / "sock")
    torchrun.main(["1", "2", "the.module", str(folder), setup.model_dump_json(), *more])


def test_ranks_of_one_node_meet_at_files(started, tmp_path):
    run(WorkerSettings(checkpoint=tmp_path, ranks=2), tmp_path)
    assert started.option("--rdzv-endpoint") == str(tmp_path / "torchrun")
    assert "keep_alive_interval=31536000" in started.option("--rdzv-conf")  # the file would grow
    assert started.option("--nproc-per-node") == "2"
    assert started.setup.rendezvous_file == tmp_path / "ranks"
    assert started.arguments[-5:-2] == ["-m", "worker.rank.start", "the.module"]


def test_ranks_are_told_where_they_find_the_memory_that_torchrun_inherited(started, tmp_path):
    run(WorkerSettings(checkpoint=tmp_path), tmp_path)
    assert started.setup.weight_memory is None
    descriptor = os.memfd_create("test")
    run(WorkerSettings(checkpoint=tmp_path), tmp_path, "--weight-memory", str(descriptor))
    assert started.setup.weight_memory
    assert started.setup.weight_memory.samefile(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)


def run_first_of_two(folder: Path, *more: str) -> None:
    rendezvous = f"127.0.0.1:{free_port()}"
    run(WorkerSettings(checkpoint=folder, ranks=2, nodes=2, rendezvous=rendezvous), folder, *more)


def test_ranks_of_several_nodes_meet_at_the_named_address(started, tmp_path):
    with pytest.raises(Ended):
        run_first_of_two(tmp_path)
    setup = started.setup
    assert started.option("--rdzv-backend") == "static"  # the others unpickle what they find in the store
    assert started.option("--rdzv-endpoint") == str(setup.rendezvous)
    assert (started.option("--nnodes"), started.option("--node-rank")) == ("2", "0")
    assert (started.option("--rdzv-id"), setup.num_ranks) == (setup.round_id, 4)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "=lo")


def test_interface_of_the_operator_is_kept(started, tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    with pytest.raises(Ended):
        run_first_of_two(tmp_path)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")


def test_end_of_the_ranks_ends_the_process_whatever_torchrun_raised(started, tmp_path, capsys):
    started.error = RuntimeError("rank 1 failed")
    with pytest.raises(Ended):
        run_first_of_two(tmp_path)
    assert started.ends == ["the ranks of this node have ended"]
    assert "rank 1 failed" in capsys.readouterr().err


def test_node_that_joins_twice_ends_without_ranks(started, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes.NodeHeartbeat, "join", lambda _: "another worker was node 0 of this round")
    with pytest.raises(Ended):
        run_first_of_two(tmp_path)
    assert (started.ends, started.arguments) == (["another worker was node 0 of this round"], [])


def test_node_without_a_supervisor_reports_that_it_is_ready(started, tmp_path):
    reading, writing = os.pipe()
    with pytest.raises(Ended):
        run_first_of_two(tmp_path, "--health-pipe", str(writing))
    reports = HealthReports(reading, stuck_s=60.0)
    reports.read()
    assert reports.health() == "ready"
    reports.close()
    os.close(writing)
