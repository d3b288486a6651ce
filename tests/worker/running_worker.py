"""Run a whole worker with a storage of its own, and observe its jobs and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from redis import Redis

from jobs.connect import connect
from jobs.order import Priority
from jobs.queue import TicketQueue
from jobs.record import Job, Status
from jobs.registration import GroupStatus, live_groups
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import new_job_id, timeline_key
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from tests.orders import make_order
from tests.waiting import wait_until
from tests.worker.examples import ORDER

ROOT = Path(__file__).parents[2]

PATIENCE_S = 900.0  # a group starts within seconds on an idle machine

FAST = {
    "LONGCAT_RANK_MODULE": "tests.worker.fault_rank",
    "LONGCAT_DEVICE": "cpu",
    "LONGCAT_RANKS": "2",
    "LONGCAT_WORKER_NAME": "test",
    "LONGCAT_CHECKPOINT_S": "0",
    "LONGCAT_MAX_ATTEMPTS": "2",
    "LONGCAT_ERROR_GRACE_S": "10",  # ranks that fail at the same step may come to it at different times
    "LONGCAT_X264_PRESET": "ultrafast",
    "LONGCAT_S3_CONNECT_TIMEOUT_S": "0.5",  # remaining files are removed again 9 s after a job
    "LONGCAT_S3_READ_TIMEOUT_S": "0.5",
    "OMP_NUM_THREADS": "1",
}

# For tests in which a process hangs. Those that do not have time to go on on a busy machine.
IMPATIENT = {"lease_s": 5, "stall_s": 30, "step_stall_s": 15}


@dataclass
class RunningWorker:
    """A running `python -m worker`. `folder` contains its data, its checkpoint and its log.

    `prefix` is the command that runs it, as in a network namespace.
    """

    folder: Path
    redis_url: str
    settings: dict[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.redis: Redis = connect(self.redis_url)
        self.job_store = JobStore(self.redis, max_attempts=2)
        self.storage = FolderStorage(self.folder / "data" / "storage")
        self.checkpoint = self.folder / "checkpoint"
        self.checkpoint.mkdir(exist_ok=True)
        self._seen: set[psutil.Process] = set()

    def start(self) -> None:
        settings = {
            "REDIS_URL": self.redis_url,
            "DATA_DIR": self.folder / "data",
            "CHECKPOINT": self.checkpoint,
        }
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **{f"LONGCAT_{name}": str(value) for name, value in settings.items()},
            **FAST,
            **self.settings,
        }
        with (self.folder / "worker.log").open("ab") as log:
            self.parent = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "worker"],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> int:
        """Drain the worker, and return its exit status."""
        self.look()
        self.parent.send_signal(signal.SIGTERM)
        return self.parent.wait(timeout=PATIENCE_S)

    # Jobs

    def submit(
        self,
        prompt: str = "",
        *,
        priority: Priority = "normal",
        max_run_s: float | None = None,
        **changes: object,
    ) -> str:
        job_id = new_job_id()
        order = make_order(ORDER, prompts=(prompt,), **changes)
        self.job_store.client.submit(Submission(job_id, order, priority=priority, max_run_s=max_run_s))
        TicketQueue(self.redis).enqueue(job_id)
        return job_id

    def job(self, job_id: str) -> Job:
        return self.job_store.client.get(job_id)

    def wait_for(self, job_id: str, *statuses: Status) -> Job:
        wait_until(lambda: self.job(job_id).status in statuses, PATIENCE_S)
        return self.job(job_id)

    def wait_for_step(self, job_id: str, step: int = 1) -> None:
        """Wait until the job has done more than `step` steps."""
        wait_until(lambda: len(self.steps(job_id)) > step, PATIENCE_S)

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            groups = list(live_groups(self.redis))
            return bool(groups) and all(group.state == "ready" for group in groups)

        wait_until(is_ready, PATIENCE_S)

    def status(self) -> GroupStatus:
        """Return the status of the first group, as soon as one is registered."""
        return wait_until(lambda: next(iter(live_groups(self.redis)), None), PATIENCE_S)

    def steps(self, job_id: str) -> list[tuple[int, int]]:
        """Return the steps (segment, step) that were run for a job, including repeated ones."""
        log = self.checkpoint / "steps.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(segment), int(step)) for name, segment, step, _ in lines if name == job_id]

    def widths(self, job_id: str) -> list[int]:
        """Return the number of ranks of each of these steps."""
        log = self.checkpoint / "steps.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [int(width) for name, _, _, width in lines if name == job_id]

    def stored(self, job_id: str) -> list[str]:
        """Return the keys of the job's files in storage, without its prefix."""
        return [key.split("/", 2)[2] for key in self.storage.keys(f"jobs/{job_id}/")]

    def results(self, job_id: str) -> list[str]:
        """Return the keys of the job's result and timeline, without its prefix."""
        result = self.job(job_id).result
        assert result is not None
        keys = (result.thumbnail_key, timeline_key(result.video_key), result.video_key)
        return [key.split("/", 2)[2] for key in keys]

    # Processes

    @property
    def supervisor(self) -> psutil.Process:
        return self._process("--group")

    @property
    def torchrun(self) -> psutil.Process:
        return self._process("worker.rank.torchrun")

    @property
    def ranks(self) -> list[psutil.Process]:
        """Return the ranks, rank 0 first."""
        module = self.settings.get("LONGCAT_RANK_MODULE", FAST["LONGCAT_RANK_MODULE"])
        found = [process for process in self.look() if module in process.cmdline()]
        found = [process for process in found if "worker.rank.torchrun" not in process.cmdline()]
        return sorted(found, key=lambda process: int(process.environ()["RANK"]))

    def look(self) -> list[psutil.Process]:
        """Return all processes of the worker, and remember them for `survivors`."""
        processes = psutil.Process(self.parent.pid).children(recursive=True)
        self._seen.update(processes)
        return processes

    def survivors(self) -> list[psutil.Process]:
        """Return the processes that `look` found and that are still running."""
        return [process for process in self._seen if _runs(process)]

    def _process(self, word: str) -> psutil.Process:
        return next(process for process in self.look() if word in process.cmdline())


@contextmanager
def running_worker(
    folder: Path, redis_url: str, prefix: Sequence[str] = (), /, **settings: object
) -> Iterator[RunningWorker]:
    """Run a worker, and check that it leaves no process."""
    worker = RunningWorker(
        folder, redis_url, {f"LONGCAT_{name.upper()}": str(value) for name, value in settings.items()}, prefix
    )
    worker.start()
    try:
        yield worker
    finally:
        if worker.parent.poll() is None:
            worker.stop()
        wait_until(lambda: not worker.survivors())


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
