"""Run an installation whose processes may belong to different releases.

All of them share one Redis, one S3 bucket and one checkpoint. A worker keeps its name and its disk when it is
started again with another release.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from redis import Redis

from stack.die_with_parent import dies_with_parent
from stack.redis_server import RedisServer
from tests.chaos.s3_proxy import FaultyS3, faulty_s3
from tests.chaos.steps import StepLog
from tests.servers import S3Server, create_bucket, free_port, redis_program, run_s3_server
from tests.skew.release import Release

BUCKET = "videos"
EXIT_TIMEOUT_S = 600.0
SETTINGS = {
    "DEVICE": "cpu",
    "RANKS": 1,
    "RANK_MODULE": "tests.chaos.rank",  # a real rank with longer steps, which logs them
    "CHECKPOINT_S": 0.3,
    "LEASE_S": 60,  # longer than a worker takes to start again
    "DRAIN_S": 60,
    "STEP_STALL_S": 60,
    "X264_PRESET": "ultrafast",
    "MIN_FREE_BYTES": 1 << 20,
    "S3_CONNECT_TIMEOUT_S": 1,
    "S3_READ_TIMEOUT_S": 4,
    "STORAGE": f"s3://{BUCKET}",
    "OWNER_REQUESTS_PER_S": "none",
    "REDIS_PATIENCE_S": 30,  # on a busy machine, Redis may take seconds
    "WEBHOOK_PRIVATE_HOSTS": "true",
}


@dataclass
class Process:
    """A running process of some release, `python -m <module>`."""

    name: str
    release: Release
    environment: dict[str, str]
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(EXIT_TIMEOUT_S)

    def kill(self) -> None:
        """Send SIGKILL to this process and to all that it has started, and wait for their end."""
        process = psutil.Process(self.popen.pid)
        killed = [process, *process.children(recursive=True)]
        for each in killed:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(killed, EXIT_TIMEOUT_S)
        self.popen.wait(EXIT_TIMEOUT_S)


@dataclass
class Installation:
    """The parts that all processes share, and the processes by name."""

    folder: Path
    redis_server: RedisServer
    redis: Redis
    s3: FaultyS3
    checkpoint: Path
    settings: dict[str, str]
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def steps(self) -> StepLog:
        """Return the log of the steps that the ranks ran."""
        return StepLog(self.checkpoint / "steps.log")

    def start_api(self, release: Release) -> str:
        """Start an API process, and return its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._start(url, release, "service", PORT=port, DATA_DIR=self.folder / f"api-{port}")
        return url

    def start_worker(self, name: str, release: Release, **settings: object) -> None:
        """Start a worker with one group, on its own disk."""
        data_dir = self.folder / f"worker-{name}"
        self._start(name, release, "worker", WORKER_NAME=name, DATA_DIR=data_dir, **settings)

    def command(self, release: Release, module: str, *arguments: str) -> str:
        """Run a command of a release to its end, and return its output."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=self._environment(release, {"DATA_DIR": self.folder / "command"}),
            cwd=release.folder,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout.strip()

    def log(self, name: str) -> str:
        """Return what a process wrote, over all its starts."""
        return self.processes[name].log.read_text()

    def spool(self, name: str) -> Path:
        """Return the spool of a worker's group."""
        return self.folder / f"worker-{name}" / "worker" / f"{name}-0" / "jobs"

    def stop(self) -> None:
        """Stop all processes."""
        for process in self.processes.values():
            if process.is_running:
                process.popen.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.popen.wait(EXIT_TIMEOUT_S)

    def _start(self, name: str, release: Release, module: str, **settings: object) -> None:
        environment = self._environment(release, settings)
        log = self.folder / f"{name.rpartition(':')[2]}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                dies_with_parent([sys.executable, "-m", module]),
                env=environment,
                cwd=release.folder,
                stdout=output,
                stderr=output,
            )
        self.processes[name] = Process(name, release, environment, popen, log)

    def _environment(self, release: Release, settings: dict[str, object]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LONGCAT_")}
        ours = {f"LONGCAT_{name}": str(value) for name, value in {**self.settings, **settings}.items()}
        return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(release.folder), **ours}


@contextmanager
def open_installation(folder: Path, checkpoint: Path, **settings: object) -> Iterator[Installation]:
    """Start Redis and S3. At the end, stop all processes."""
    with ExitStack() as parts:
        redis_server = parts.enter_context(RedisServer(folder / "redis", redis_program()))
        s3_server = parts.enter_context(run_s3_server(folder / "s3.log"))
        create_bucket(s3_server, BUCKET)
        s3 = parts.enter_context(faulty_s3(s3_server.endpoint_url))
        shared = {**SETTINGS, "CHECKPOINT": checkpoint, "REDIS_URL": redis_server.url, **_s3(s3_server, s3)}
        redis = parts.enter_context(Redis.from_url(redis_server.url))
        every = {name: str(value) for name, value in {**shared, **settings}.items()}
        installation = Installation(folder, redis_server, redis, s3, checkpoint, every)
        parts.callback(installation.stop)
        yield installation


def _s3(server: S3Server, proxy: FaultyS3) -> dict[str, str]:
    return {
        "S3_ENDPOINT_URL": proxy.url,
        "S3_REGION": server.region,
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
    }
