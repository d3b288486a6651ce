"""Everything that runs in a campaign: Redis, S3 behind its proxy, two API processes, workers on own disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
from redis import Redis

from jobs.connect import connect
from jobs.settings import SharedSettings
from jobs.storage import Storage, open_storage
from jobs.transitions import Ledger
from stack.leash import leashed
from stack.redis_server import RedisServer, find_binary
from tests.chaos.s3_proxy import FaultyS3, faulty_s3
from tests.chaos.steps import StepLog
from tests.servers import S3Server, free_port, run_s3_server

ROOT = Path(__file__).parents[2]

LEASE_S = 5.0
MAX_ATTEMPTS = 3
DISK = "64m"  # of each worker, where one can be mounted
BUCKET = "films"
SETTINGS = {
    "DEVICE": "cpu",
    "RANKS": "2",
    "RANK_MODULE": "tests.chaos.rank",
    "LEASE_S": LEASE_S,
    "MAX_ATTEMPTS": MAX_ATTEMPTS,
    "CHECKPOINT_S": 0.3,
    "STALL_S": 40,
    "STEP_STALL_S": 6,
    "ERROR_GRACE_S": 2,
    "START_LIMIT_S": 180,
    "LONGEST_PAUSE_S": 5,
    "DRAIN_S": 20,
    "X264_PRESET": "ultrafast",
    "MIN_FREE_BYTES": 4 << 20,
    "PREEMPT_AFTER_S": 0.5,
    "S3_CONNECT_TIMEOUT_S": 2,
    "S3_READ_TIMEOUT_S": 4,
    "STORAGE": f"s3://{BUCKET}",
}


def can_mount() -> bool:
    """Whether a worker can be given a disk of its own."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "disk", "/mnt"]
    return shutil.which("unshare") is not None and _succeeds(command)


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@dataclass
class Daemon:
    """A program that is started, killed and started again; `wanted` is that it should run."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False

    def start(self) -> None:
        self.wanted = True
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                leashed(self.command), env=dict(self.environment), cwd=ROOT, stdout=log, stderr=log
            )

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it one after which it is not to run."""
        assert self.process is not None
        self.wanted = False
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def end(self) -> None:
        if self.runs:
            self.signal(signal.SIGTERM)
        if self.process:
            self.wait(60)


@dataclass
class Worker(Daemon):
    """`python -m worker` with one group; `folder` is its disk, which nobody else sees if it is `mounted`."""

    folder: Path = Path()
    mounted: bool = False

    @classmethod
    def of(cls, name: str, site: Path, environment: Mapping[str, str], *, mounted: bool) -> Worker:
        folder = site / f"disk-{name}"
        folder.mkdir()
        command = [sys.executable, "-m", "worker"]
        if mounted:
            mount = f"mount -t tmpfs -o size={DISK} disk '{folder}' && exec \"$@\""
            command = ["unshare", "--mount", "sh", "-c", mount, "worker", *command]
        own = {"LONGCAT_WORKER_NAME": name, "LONGCAT_DATA_DIR": str(folder)}
        log = site / f"worker-{name}.log"
        return cls(f"worker {name}", command, {**environment, **own}, log, folder=folder, mounted=mounted)

    @property
    def group(self) -> str:
        return f"{self.environment['LONGCAT_WORKER_NAME']}-0"

    @property
    def disk(self) -> Path:
        """Its folder as seen from outside, while it runs."""
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
        return self._first("worker.launch")

    @property
    def ranks(self) -> list[psutil.Process]:
        """Rank 0 first; [] while they are being started."""
        torchrun = self.torchrun
        found = torchrun.children() if torchrun else []
        found = [process for process in found if "tests.chaos.rank" in process.cmdline()]
        return sorted(found, key=lambda process: int(process.environ()["RANK"]))

    @property
    def spooled(self) -> list[str]:
        """The jobs of which files lie on its disk."""
        folder = self.disk / "worker" / self.group / "jobs"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def lose_machine(self) -> None:
        """Everything ends at once, and the disk is lost."""
        self.wanted = False
        for process in self.processes:
            process.kill()
        self.wait(30)
        if not self.mounted:
            shutil.rmtree(self.folder)
            self.folder.mkdir()

    def _first(self, word: str) -> psutil.Process | None:
        return next((process for process in self.processes if word in process.cmdline()), None)


@dataclass
class Site:
    """All of it. `unasked` names the daemons that ended without being told to."""

    folder: Path
    redis_server: RedisServer
    s3: FaultyS3
    apis: dict[str, Daemon]
    workers: list[Worker]
    checkpoint: Path
    redis: Redis
    ledger: Ledger
    storage: Storage
    unasked: list[str] = field(default_factory=list)

    @property
    def steps(self) -> StepLog:
        return StepLog(self.checkpoint / "steps.log")

    def processes(self) -> list[psutil.Process]:
        """Every process of ours, also those that nobody is the parent of."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def start(self) -> None:
        for daemon in (*self.apis.values(), *self.workers):
            daemon.start()

    def mend(self) -> None:
        """Start again what ended by itself, as whoever runs it would."""
        for daemon in (*self.apis.values(), *self.workers):
            if daemon.wanted and not daemon.runs:
                self.unasked.append(daemon.name)
                daemon.start()

    def end(self) -> None:
        for daemon in (*self.workers, *self.apis.values()):
            if daemon.runs:
                daemon.signal(signal.SIGTERM)
        for daemon in (*self.workers, *self.apis.values()):
            daemon.end()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            data_dir = process.environ().get("LONGCAT_DATA_DIR", "")
            return data_dir.startswith(str(self.folder)) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@contextmanager
def open_site(folder: Path, checkpoint: Path, num_workers: int) -> Iterator[Site]:
    """Start everything; at the end nothing of it runs."""
    with ExitStack() as parts:
        redis_server = RedisServer(folder / "redis", find_binary())
        redis_server.start()
        parts.callback(redis_server.stop)
        s3_server = parts.enter_context(run_s3_server(folder / "s3.log"))
        _make_bucket(s3_server)
        s3 = parts.enter_context(faulty_s3(s3_server.endpoint_url))
        environment = _environment(redis_server.url, s3_server, s3, checkpoint)
        apis = {f"http://127.0.0.1:{port}": port for port in (free_port(), free_port())}
        mounted = can_mount()
        redis = connect(redis_server.url, patience_s=20.0)
        site = Site(
            folder=folder,
            redis_server=redis_server,
            s3=s3,
            apis={url: _api(folder, environment, port) for url, port in apis.items()},
            workers=[Worker.of(name, folder, environment, mounted=mounted) for name in "abcd"[:num_workers]],
            checkpoint=checkpoint,
            redis=redis,
            ledger=Ledger(redis, max_attempts=MAX_ATTEMPTS),
            storage=open_storage(_shared_settings(environment)),
        )
        parts.callback(site.end)
        site.start()
        yield site


def _environment(redis_url: str, server: S3Server, s3: FaultyS3, checkpoint: Path) -> dict[str, str]:
    settings = {
        **SETTINGS,
        "REDIS_URL": redis_url,
        "CHECKPOINT": checkpoint,
        "S3_ENDPOINT_URL": s3.url,
        "S3_REGION": server.region,
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LONGCAT_")}
    ours = {f"LONGCAT_{name}": str(value) for name, value in settings.items()}
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **ours}


def _shared_settings(environment: Mapping[str, str]) -> SharedSettings:
    named = {name: environment.get(f"LONGCAT_{name.upper()}") for name in SharedSettings.model_fields}
    fields: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    return SharedSettings(**fields)


def _api(folder: Path, environment: Mapping[str, str], port: int) -> Daemon:
    own = {"LONGCAT_PORT": str(port), "LONGCAT_DATA_DIR": str(folder / f"api-{port}")}
    command = [sys.executable, "-m", "service"]
    return Daemon(f"api {port}", command, {**environment, **own}, folder / f"api-{port}.log")


def _make_bucket(server: S3Server) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()


def now() -> float:
    """The clock of the step log."""
    return time.time()
