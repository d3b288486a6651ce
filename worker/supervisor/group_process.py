"""Start and kill the processes of a GPU group, torchrun and its ranks, and talk to those that connect.

In a fixed group that is rank 0. In a world all ranks connect, and each first says which one it is.

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
from worker.first_failure import FAILURE, read_failure
from worker.messages import Message, RankConnected, Ready
from worker.weight_memory import inherited_files, weight_memory_option

KILL_LIMIT_S = 30.0  # a GPU driver may take long to release a process


OnMessage = Callable[["GroupProcess", Message | None, int], None]
"""Takes each message of a rank, or None once it has closed the connection, and the number of the rank."""


@dataclass(frozen=True)
class Launch:
    """The command and environment of a group.

    Attributes:
        num_ranks: the number of ranks on this machine.
        module: the module that every rank runs.
        setup: its first argument (`worker.settings.RankSetup` as JSON).
        socket: where the supervisor listens for rank 0.
        environment: the environment of torchrun and the ranks.
        weight_memory: an open file in memory where the ranks share weights, if any.
        num_connections: the number of ranks that connect.
    """

    num_ranks: int
    module: str
    setup: str
    socket: Path
    environment: Mapping[str, str]
    weight_memory: int | None = None
    num_connections: int = 1


class GroupProcess:
    """The processes of one start of a group.

    `on_message` is called in a thread of each rank that connects. `Ready` is passed on once all ranks have
    said their numbers, so that each can be sent messages. `report` is called there for each message that this
    release cannot read.
    """

    def __init__(
        self,
        launch: Launch,
        on_message: OnMessage,
        report: Callable[[UnreadableRecord], None] = log_unreadable,
    ) -> None:
        self._on_message = on_message
        self._report = report
        self._channels: dict[int, Channel] = {}
        self._first_failure: str | None = None
        self._is_killed = False
        self._changed = threading.Condition()
        self._rank_pids: tuple[int, ...] = ()
        self._listening = listen(launch.socket)
        self._rendezvous = _new_rendezvous_folder(launch.socket.parent)
        self._torchrun = subprocess.Popen(
            [
                *(sys.executable, "-m", "worker.rank.torchrun", str(os.getpid())),
                *(str(launch.num_ranks), launch.module, str(self._rendezvous), launch.setup),
                *weight_memory_option(launch.weight_memory),
            ],
            pass_fds=inherited_files(launch.weight_memory),
            env=dict(launch.environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the supervisor, which drains
        )
        self._receivers = [
            threading.Thread(target=self._receive, name=f"group-receiver-{number}", daemon=True)
            for number in range(launch.num_connections)
        ]
        for receiver in self._receivers:
            receiver.start()

    def set_ranks(self, pids: tuple[int, ...]) -> None:
        """Tell which processes are the ranks, so that `is_alive` and `kill` include them."""
        self._rank_pids = pids

    def send(self, message: Message, rank: int = 0) -> None:
        """Send a message to a rank that has connected. If it is gone, `on_message` gets None anyway."""
        with suppress(OSError):
            self._channels[rank].send(message)

    @property
    def is_alive(self) -> bool:
        """Return whether torchrun and every known rank are running."""
        return self._torchrun.poll() is None and all(is_running(pid) for pid in self._rank_pids)

    @property
    def first_failure(self) -> str | None:
        """Return why the first rank that failed on this machine did, None if none has said it."""
        return self._first_failure or read_failure(self._rendezvous / FAILURE)

    @property
    def dead_ranks(self) -> list[int]:
        """Return the ranks that are known and do not run."""
        return [rank for rank, pid in enumerate(self._rank_pids) if not is_running(pid)]

    def kill(self) -> None:
        """Kill all processes, and return when they and the receiving threads have ended."""
        for pid in self._rank_pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._torchrun.kill()
        self._torchrun.wait()
        with suppress(OSError):  # ends the receiver's `accept`; fails if it has returned before
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._changed:
            self._is_killed = True
            self._changed.notify_all()
        deadline = time.monotonic() + KILL_LIMIT_S
        while any(is_running(pid) for pid in self._rank_pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        for receiver in self._receivers:
            receiver.join(max(0.0, deadline - time.monotonic()))
        self._first_failure = self.first_failure
        shutil.rmtree(self._rendezvous, ignore_errors=True)

    def _receive(self) -> None:
        try:
            connected, _ = self._listening.accept()
        except OSError:  # killed before the rank connected
            return
        rank, channel = 0, Channel(connected, self._report)
        if len(self._receivers) == 1:
            self._add_channel(rank, channel)
        while (message := channel.recv()) is not None:
            if isinstance(message, RankConnected):
                rank = message.rank
                self._add_channel(rank, channel)
            else:
                if isinstance(message, Ready):
                    self._wait_for_all_ranks()
                self._on_message(self, message, rank)
        channel.close()
        self._on_message(self, None, rank)

    def _add_channel(self, rank: int, channel: Channel) -> None:
        with self._changed:
            self._channels[rank] = channel
            self._changed.notify_all()

    def _wait_for_all_ranks(self) -> None:
        """Wait for the `RankConnected` of all ranks. They were sent before `Ready`, by other connections."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_killed or len(self._channels) == len(self._receivers))


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
