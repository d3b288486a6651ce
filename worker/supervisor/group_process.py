"""Start and kill the processes of a GPU group, torchrun and its ranks, and talk to rank 0.

A new start always is new processes: nothing of a failed group is used again.
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

from jobs.errors import UnreadableRecord
from worker.channel import Channel, listen, log_unreadable
from worker.messages import Message

KILL_LIMIT_S = 30.0  # a GPU driver may take long to release a process


@dataclass(frozen=True)
class Launch:
    """The command and environment of a group.

    Attributes:
        num_ranks: the number of ranks on this machine.
        module: the module that every rank runs.
        setup: its first argument (`worker.settings.RankSetup` as JSON).
        socket: where the supervisor listens for rank 0.
        environment: the environment of torchrun and the ranks.
        lora_memory: an open file in memory where the ranks keep merged weights, if any.
    """

    num_ranks: int
    module: str
    setup: str
    socket: Path
    environment: Mapping[str, str]
    lora_memory: int | None = None


class GroupProcess:
    """The processes of one start of a group.

    `on_message` is called in a thread with every message of rank 0, and with None once it has closed the
    connection. `report` is called there for each message that this release cannot read.
    """

    def __init__(
        self,
        launch: Launch,
        on_message: Callable[[GroupProcess, Message | None], None],
        report: Callable[[UnreadableRecord], None] = log_unreadable,
    ) -> None:
        self._on_message = on_message
        self._report = report
        self._channel: Channel | None = None
        self._rank_pids: tuple[int, ...] = ()
        self._listening = listen(launch.socket)
        self._rendezvous = _new_rendezvous_folder(launch.socket.parent)
        self._torchrun = subprocess.Popen(
            [
                *(sys.executable, "-m", "worker.rank.torchrun", str(os.getpid())),
                *(str(launch.num_ranks), launch.module, str(self._rendezvous), launch.setup),
                *(() if launch.lora_memory is None else ("--lora-memory", str(launch.lora_memory))),
            ],
            pass_fds=() if launch.lora_memory is None else (launch.lora_memory,),
            env=dict(launch.environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the supervisor, which drains
        )
        self._receiver = threading.Thread(target=self._receive, name="group-receiver", daemon=True)
        self._receiver.start()

    def set_ranks(self, pids: tuple[int, ...]) -> None:
        """Tell which processes are the ranks, so that `is_alive` and `kill` include them."""
        self._rank_pids = pids

    def send(self, message: Message) -> None:
        """Send a message to rank 0, which has connected. If it is gone, `on_message` gets None anyway."""
        assert self._channel is not None
        with suppress(OSError):
            self._channel.send(message)

    @property
    def is_alive(self) -> bool:
        """Return whether torchrun and every known rank are running."""
        return self._torchrun.poll() is None and all(is_running(pid) for pid in self._rank_pids)

    def kill(self) -> None:
        """Kill all processes, and return when they and the receiving thread have ended."""
        for pid in self._rank_pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._torchrun.kill()
        self._torchrun.wait()
        with suppress(OSError):  # ends the receiver's `accept`; fails if it has returned before
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        deadline = time.monotonic() + KILL_LIMIT_S
        while any(is_running(pid) for pid in self._rank_pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._receiver.join(max(0.0, deadline - time.monotonic()))
        shutil.rmtree(self._rendezvous, ignore_errors=True)

    def _receive(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except OSError:  # killed before rank 0 connected
            return
        self._channel = Channel(connected, self._report)
        while (message := self._channel.recv()) is not None:
            self._on_message(self, message)
        self._channel.close()
        self._on_message(self, None)


def _new_rendezvous_folder(parent: Path) -> Path:
    """Create the private folder in which torchrun and the ranks of one start meet.

    Every start has its own, so that a rank of an earlier start cannot disturb it. Folders that a killed
    supervisor left are removed.
    """
    for folder in parent.glob("rendezvous-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix="rendezvous-"))


def is_running(pid: int) -> bool:
    """Return whether this process is running; a zombie is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}
