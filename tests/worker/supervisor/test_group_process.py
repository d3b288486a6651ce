from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.supervisor.group_processes import READY, START_TIMEOUT_S, ProgramStarter
from worker.first_failure import FAILURE, write_failure
from worker.messages import Ready, RunJob
from worker.supervisor.group_process import GroupProcess, Launch, is_running


@pytest.fixture
def starter(tmp_path, monkeypatch):
    starter = ProgramStarter(tmp_path, monkeypatch)
    yield starter
    starter.kill_all()


def test_messages_of_rank_0_are_received(starter):
    started = starter.start("ready")
    process, message = starter.messages.get(timeout=START_TIMEOUT_S)
    assert process is started
    assert message.capability == READY.capability


def rendezvous_folders(starter: ProgramStarter) -> list[Path]:
    return list(starter.socket.parent.glob("rendezvous-*"))


def test_each_start_has_its_own_private_rendezvous_folder(starter):
    seen = []
    for _ in range(2):
        process = starter.start("silent")
        (folder,) = rendezvous_folders(starter)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        seen.append(folder)
        process.kill()
        assert rendezvous_folders(starter) == []
    assert seen[0] != seen[1]


def test_rendezvous_folder_of_a_killed_supervisor_is_removed(starter):
    left = starter.socket.parent / "rendezvous-old"
    left.mkdir(parents=True)
    (left / "ranks").touch()
    starter.start("silent")
    assert left not in rendezvous_folders(starter)


def test_first_failure_of_the_ranks_is_known_after_the_kill(starter):
    process = starter.start("silent")
    assert process.first_failure is None
    (folder,) = rendezvous_folders(starter)
    write_failure(folder / FAILURE, 1, "OutOfMemoryError: too large")
    process.kill()
    assert process.first_failure == "rank 1: OutOfMemoryError: too large"


def test_kill_ends_all_processes_and_reports_the_closed_connection(starter):
    process = starter.start("ready")
    _, ready = starter.messages.get(timeout=START_TIMEOUT_S)
    process.set_ranks(ready.pids)
    assert process.is_alive
    process.kill()
    assert not process.is_alive
    assert not is_running(ready.pids[0])
    assert starter.messages.get_nowait() == (process, None)


@pytest.mark.parametrize("how", ["ready", "silent"])
def test_kill_ends_the_receiving_thread(starter, how):
    before = set(threading.enumerate())
    process = starter.start(how)
    if how == "ready":
        starter.messages.get(timeout=START_TIMEOUT_S)
    process.kill()
    assert set(threading.enumerate()) <= before


def test_group_without_one_of_its_ranks_is_not_alive(starter):
    process = starter.start("ready")
    rank = subprocess.Popen(["silent@"])  # the starter runs its program instead
    process.set_ranks((rank.pid,))
    try:
        assert process.is_alive
        rank.kill()
        wait_until(lambda: not process.is_alive)  # the rank is a zombie until `wait`
    finally:
        rank.kill()
        rank.wait()


def test_sending_to_a_dead_group_does_not_raise(starter):
    process = starter.start("ready")
    starter.messages.get(timeout=START_TIMEOUT_S)
    process.kill()
    for _ in range(3):
        process.send(RunJob(job_id="j", order=ORDER, folder=Path()))


def test_group_is_ready_once_each_rank_has_said_its_number(starter):
    process = starter.start("late")
    wait_until(starter.socket.with_name("sent").exists)  # rank 0 has sent `Ready`
    assert starter.messages.empty()
    starter.socket.with_name("go").touch()
    assert isinstance(starter.messages.get(timeout=START_TIMEOUT_S)[1], Ready)
    process.send(RunJob(job_id="j", order=ORDER, folder=Path()), 1)
    assert isinstance(starter.messages.get(timeout=START_TIMEOUT_S)[1], Ready)


def test_kill_does_not_wait_for_ranks_that_have_not_connected(starter):
    process = starter.start("late")
    wait_until(starter.socket.with_name("sent").exists)
    process.kill()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("group-receiver")]


def test_memory_for_loras_is_open_in_the_processes_of_the_group(tmp_path, monkeypatch):
    started: dict[str, Any] = {}
    real = subprocess.Popen

    def start(command, **given):
        started.update(given, command=command)
        return real([sys.executable, "-c", "import time; time.sleep(1000)"])

    monkeypatch.setattr(subprocess, "Popen", start)
    launch = Launch(2, "module", "{}", tmp_path / "socket", {}, weight_memory=7)
    GroupProcess(launch, lambda *_: None).kill()
    assert started["pass_fds"] == (7,)
    assert started["command"][-2:] == ["--weight-memory", "7"]


def test_unused_pid_is_not_running():
    assert is_running(os.getpid())
    assert not is_running(2**22 + 1)
