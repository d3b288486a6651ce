"""Start short programs instead of torchrun. The real one runs in `tests/worker/test_faults.py`."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.capability import Capability
from worker.messages import Message, Ready
from worker.supervisor.group_process import GroupProcess, Launch

READY = Ready(
    capability=Capability(model="m", tasks=("refine",), limits={}, device="cpu", dtype="float32"), pids=()
)

START_TIMEOUT_S = 120.0  # a program starts within a second on an idle machine

# In place of `worker.rank.torchrun`: connects as rank 0 does and reports ready, dies, or stays silent. If it
# is late, a second rank says its number once a file exists, and is ready when it has received a message.
PROGRAM = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from worker.channel import connect
from worker.messages import RankConnected, Ready
how, socket = sys.argv[-1].split("@")
if how == "dies":
    sys.exit(3)
channel = connect(pathlib.Path(socket)) if how != "silent" else None
if channel:
    channel.send(RankConnected(rank=0))
if how in {{"ready", "late"}}:
    ready = Ready.model_validate_json({READY.model_dump_json()!r})
    channel.send(ready.model_copy(update={{"pids": (os.getpid(),)}}))
if how == "late":
    pathlib.Path(socket).with_name("sent").touch()
    second = connect(pathlib.Path(socket))
    while not pathlib.Path(socket).with_name("go").exists():
        time.sleep(0.01)
    second.send(RankConnected(rank=1))
    second.recv()
    second.send(ready)
time.sleep(1000)
"""


class ProgramStarter:
    """Start groups that are ready, die or stay silent, and keep their messages."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = folder / "program.py"
        program.write_text(PROGRAM)
        real = subprocess.Popen
        monkeypatch.setattr(
            subprocess,
            "Popen",
            lambda command, **given: real([sys.executable, str(program), command[-1]], **given),
        )
        self.socket = folder / "run" / "rank-0.sock"
        self.messages: queue.SimpleQueue[tuple[GroupProcess, Message | None]] = queue.SimpleQueue()
        self.started: list[GroupProcess] = []

    def start(self, how: str) -> GroupProcess:
        num_connections = 2 if how == "late" else 1
        launch = Launch(
            2, "module", f"{how}@{self.socket}", self.socket, dict(os.environ), None, num_connections
        )
        process = GroupProcess(launch, lambda process, message, _: self.messages.put((process, message)))
        self.started.append(process)
        return process

    def kill_all(self) -> None:
        for process in self.started:
            process.kill()
