"""Start, kill and restart the programs of a site. Each worker has a disk of its own if one can be mounted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from stack.die_with_parent import dies_with_parent
from tests.chaos.redis_link import RedisLink

ROOT = Path(__file__).parents[2]
DISK = "64m"  # of each worker, where one can be mounted
EXIT_TIMEOUT_S = 300.0  # the machine may be slow


def can_mount() -> bool:
    """Return whether this process may mount a disk for each worker."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "disk", "/mnt"]
    return shutil.which("unshare") is not None and _succeeds(command)


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@dataclass(frozen=True)
class SharedDisk:
    """A disk of several programs.

    Attributes:
        folder: its path for these programs.
        seen_at: its path for other processes.
        entering: the beginning of the command of a program that sees it.
    """

    folder: Path
    seen_at: Path
    entering: Sequence[str] = ()


@contextmanager
def shared_disk(folder: Path, *, mounted: bool) -> Iterator[SharedDisk]:
    """Create a folder for several programs, a disk of its own in a namespace that they enter if `mounted`."""
    folder.mkdir()
    if not mounted:
        yield SharedDisk(folder, folder)
        return
    mount = f"mount -t tmpfs -o size={DISK} disk '{folder}' && echo mounted && exec sleep infinity"
    command = dies_with_parent(["unshare", "--mount", "sh", "-c", mount])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "mounted\n"
            namespace = f"/proc/{holder.pid}"
            entering = ("nsenter", f"--mount={namespace}/ns/mnt")
            yield SharedDisk(folder, Path(f"{namespace}/root{folder}"), entering)
        finally:
            holder.kill()


@dataclass
class Daemon:
    """A program that can be killed and started again.

    Attributes:
        redis_link: its connection to Redis.
        wanted: whether it should be running.
        checkout: the folder of the code that it runs.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    redis_link: RedisLink
    log: Path
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    checkout: Path = ROOT

    def start(self) -> None:
        self.wanted = True
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                dies_with_parent(self.command),
                env={
                    **self.environment,
                    "LONGCAT_REDIS_URL": self.redis_link.url,
                    "PYTHONPATH": str(self.checkout),
                },
                cwd=self.checkout,
                stdout=log,
                stderr=log,
            )

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal that ends the program."""
        assert self.process is not None
        self.wanted = False
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(EXIT_TIMEOUT_S)

    def end(self) -> None:
        if self.runs:
            self.signal(signal.SIGTERM)
        if self.process:
            self.wait()


@dataclass
class Worker(Daemon):
    """A `python -m worker` with one group, or with ranks that form a world.

    Attributes:
        folder: its disk.
        mounted: whether the disk is mounted in a namespace of its own, so that other processes do not see it.
    """

    folder: Path = Path()
    mounted: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        site: Path,
        environment: Mapping[str, str],
        redis_link: RedisLink,
        *,
        mounted: bool,
        checkout: Path = ROOT,
    ) -> Worker:
        folder = site / f"disk-{name}"
        folder.mkdir()
        command = [sys.executable, "-m", "worker"]
        if mounted:
            mount = f"mount -t tmpfs -o size={DISK} disk '{folder}' && exec \"$@\""
            command = ["unshare", "--mount", "sh", "-c", mount, "worker", *command]
        own = {"LONGCAT_WORKER_NAME": name, "LONGCAT_DATA_DIR": str(folder)}
        log = site / f"worker-{name}.log"
        environment = {**environment, **own}
        return cls(
            f"worker {name}",
            command,
            environment,
            redis_link,
            log,
            checkout=checkout,
            folder=folder,
            mounted=mounted,
        )

    @property
    def num_ranks(self) -> int:
        return int(self.environment["LONGCAT_RANKS"])

    @property
    def is_elastic(self) -> bool:
        """Return whether its ranks form a world, in which each has a group's name."""
        return self.environment.get("LONGCAT_CONTEXT_PARALLEL") == "auto"

    @property
    def groups(self) -> list[str]:
        """Return the names of its groups. The ranks of a world use the folder of the first."""
        name = self.environment["LONGCAT_WORKER_NAME"]
        return [f"{name}-{index}" for index in range(self.num_ranks if self.is_elastic else 1)]

    @property
    def checkpoint(self) -> Path:
        return Path(self.environment["LONGCAT_CHECKPOINT"])

    @property
    def disk(self) -> Path:
        """Return the path of its disk for other processes, while the worker runs."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.folder}") if self.mounted else self.folder

    @property
    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    @property
    def supervisor(self) -> psutil.Process | None:
        return self._first("--group")

    @property
    def torchrun(self) -> psutil.Process | None:
        return self._first("worker.rank.torchrun")

    @property
    def ranks(self) -> list[psutil.Process]:
        """Return the ranks, rank 0 first; [] while they start."""
        torchrun = self.torchrun
        try:
            found = torchrun.children() if torchrun else []
            found = [process for process in found if "tests.chaos.rank" in command_of(process)]
            return sorted(found, key=lambda process: int(process.environ()["RANK"]))
        except psutil.NoSuchProcess:  # they are ending just now
            return []

    @property
    def spooled(self) -> list[str]:
        """Return the ids of the jobs that have files on its disk."""
        folders = [self.disk / "worker" / group / "jobs" for group in self.groups]
        return [path.name for folder in folders if folder.exists() for path in folder.iterdir()]

    def lose_machine(self) -> None:
        """Kill all processes at once, and lose the disk."""
        self.wanted = False
        for process in self.processes:
            process.kill()
        self.wait()
        if not self.mounted:
            shutil.rmtree(self.folder)
            self.folder.mkdir()

    def _first(self, word: str) -> psutil.Process | None:
        return next((process for process in self.processes if word in command_of(process)), None)


def command_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process, [] if it has ended."""
    try:
        command: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return command
