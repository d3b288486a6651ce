from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.servers import free_port
from tests.waiting import wait_until
from worker import follower
from worker.follower import follow, torchrun_command
from worker.launcher import EXIT_UNUSABLE
from worker.settings import RankSetup, WorkerSettings

# In place of torchrun: records its start, reports that it is ready, and ends when a file exists.
TORCHRUN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file:
    file.write(f"{os.getpid()}\\n")
os.write(int(sys.argv[-1]), b"ready\\n" if sys.argv[2] == "joined" else b"")
parent = os.getppid()
while not (folder / "over").exists() and os.getppid() == parent:
    time.sleep(0.02)
"""


def settings_of(folder: Path, **changes: object) -> WorkerSettings:
    settings = WorkerSettings(checkpoint=folder, nodes=2, node_rank=1, rendezvous="10.0.0.1:29500")
    return settings.model_copy(update=changes)


class RunningFollower:
    """`follow` in this process, with signals delivered to it from a thread of the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str = "joined") -> None:
        self.folder = folder
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        command = [sys.executable, "-c", TORCHRUN, str(folder), how]
        monkeypatch.setattr(follower, "torchrun_command", lambda _: command)

    def starts(self) -> list[int]:
        file = self.folder / "starts"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def run(self, script: Callable[[], object], **changes: object) -> int:
        """Follow while `script` runs in a thread, which ends with a SIGTERM.

        The script must wait for the first start: before, a signal would end the test.
        """

        def act() -> None:
            try:
                script()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=act)
        thread.start()
        try:
            return follow(settings_of(self.folder, **changes))
        finally:
            thread.join()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)


def test_torchrun_starts_again_after_each_round(tmp_path, monkeypatch):
    running = RunningFollower(tmp_path, monkeypatch)

    def script() -> None:
        wait_until(lambda: len(running.starts()) == 1)
        psutil.Process(running.starts()[0]).kill()
        wait_until(lambda: len(running.starts()) == 2)
        (tmp_path / "over").touch()

    assert running.run(script) == 0
    assert not any(psutil.pid_exists(pid) for pid in running.starts())


def test_stop_lets_the_round_end(tmp_path, monkeypatch):
    running = RunningFollower(tmp_path, monkeypatch)
    port = free_port()
    ended: list[bool] = []

    def script() -> None:
        wait_until(lambda: probe(port, "/readyz") == {"groups": ["ready"]})
        os.kill(os.getpid(), signal.SIGTERM)
        ended.append(psutil.pid_exists(running.starts()[0]))
        (tmp_path / "over").touch()

    assert running.run(script, health_port=port, drain_s=60) == 0
    assert ended == [True]


def test_stop_kills_ranks_of_a_round_that_does_not_end(tmp_path, monkeypatch):
    running = RunningFollower(tmp_path, monkeypatch)
    assert running.run(lambda: wait_until(running.starts), drain_s=0.1) == 0
    assert not psutil.pid_exists(running.starts()[0])


def test_stop_does_not_wait_for_a_round_that_has_not_begun(tmp_path, monkeypatch):
    running = RunningFollower(tmp_path, monkeypatch, how="waits")
    assert running.run(lambda: wait_until(running.starts), drain_s=3600) == 0
    assert not psutil.pid_exists(running.starts()[0])


def test_used_health_port_ends_the_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert follow(settings_of(tmp_path, health_port=port)) == EXIT_UNUSABLE


def test_command_of_torchrun_has_the_ranks_of_this_node_and_dies_with_it(tmp_path):
    *_, parent, num_ranks, module, folder, setup = torchrun_command(settings_of(tmp_path, ranks=8))
    assert (parent, num_ranks, module, folder) == (str(os.getpid()), "8", "worker.rank.main", "")
    assert RankSetup.model_validate_json(setup).node_rank == 1


def probe(port: int, path: str) -> object:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return json.loads(response.read())
    except OSError:
        return None
