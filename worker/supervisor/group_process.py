"""One life of a group: a torchrun child with its ranks, and the connection to rank 0.

The supervisor starts one, talks to it, and kills it when it is not sound. A new one is always a new process:
nothing of a broken group is used again.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.channel import Channel, listen
from worker.messages import Message

DYING_S = 30.0  # a driver may take its time to let a process go


@dataclass(frozen=True)
class Launch:
    """How to start a group: what runs on each rank, told what."""

    num_ranks: int
    module: str
    setup: str
    socket: Path
    environment: Mapping[str, str]


class GroupProcess:
    """The processes of a group. `hear` is called in a thread, with None once rank 0 is gone."""

    def __init__(self, launch: Launch, hear: Callable[[GroupProcess, Message | None], None]) -> None:
        self._hear = hear
        self._line: Channel | None = None
        self._pids: tuple[int, ...] = ()
        self._listening = listen(launch.socket)
        self._rendezvous = _new_rendezvous_folder(launch.socket.parent)
        self._torchrun = subprocess.Popen(
            [
                *(sys.executable, "-m", "worker.rank.torchrun", str(os.getpid())),
                *(str(launch.num_ranks), launch.module, str(self._rendezvous), launch.setup),
            ],
            env=dict(launch.environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the supervisor, which drains
        )
        threading.Thread(target=self._listen, name="group", daemon=True).start()

    def knows(self, pids: tuple[int, ...]) -> None:
        """These are its ranks."""
        self._pids = pids

    def say(self, message: Message) -> None:
        """Tell rank 0; if it is gone, that is heard of otherwise."""
        assert self._line is not None
        try:
            self._line.send(message)
        except OSError:
            return

    @property
    def is_alive(self) -> bool:
        """Whether torchrun and every rank that is known live."""
        return self._torchrun.poll() is None and all(is_running(pid) for pid in self._pids)

    def kill(self) -> None:
        """End it at once, and wait until nothing of it is left."""
        for pid in self._pids:
            _kill(pid)
        self._torchrun.kill()
        self._torchrun.wait()
        with suppress(OSError):  # nobody waits for a call any more
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        deadline = time.monotonic() + DYING_S
        while any(is_running(pid) for pid in self._pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(self._rendezvous, ignore_errors=True)

    def _listen(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except OSError:  # killed before it called
            return
        self._line = Channel(connected)
        while (message := self._line.recv()) is not None:
            self._hear(self, message)
        self._line.close()
        self._hear(self, None)


def _new_rendezvous_folder(parent: Path) -> Path:
    """Make the folder in which torchrun and the ranks of one start meet, for this user alone.

    Each start has its own, so that a rank of an earlier start cannot disturb it. Those of a supervisor that
    was killed are removed.
    """
    for folder in parent.glob("rendezvous-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix="rendezvous-"))


def is_running(pid: int) -> bool:
    """Whether this process lives; one that is dead but not yet buried does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
