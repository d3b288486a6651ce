"""Run the installation of a campaign: Redis, S3 behind a proxy, two API processes, and workers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from jobs.connect import connect
from jobs.settings import SharedSettings
from jobs.storage.base import Storage, open_storage
from jobs.store.job_store import JobStore
from tests.chaos.daemons import ROOT, Daemon, SharedDisk, Worker, can_mount, shared_disk
from tests.chaos.receiver import Receiver, run_receiver
from tests.chaos.redis_link import RedisLink, run_redis_link
from tests.chaos.redis_servers import NamedRedis
from tests.chaos.s3_proxy import FaultyS3, faulty_s3
from tests.chaos.steps import StepLog
from tests.servers import S3Server, create_bucket, free_port, redis_program, run_s3_server

LEASE_S = 10.0
MAX_ATTEMPTS = 3
BUCKET = "videos"
UPLOADS = "uploads"
SETTINGS = {
    "DEVICE": "cpu",
    "RANKS": "2",
    "RANK_MODULE": "tests.chaos.rank",
    "LEASE_S": LEASE_S,
    "MAX_ATTEMPTS": MAX_ATTEMPTS,
    "CHECKPOINT_S": 0.3,
    "STALL_S": 60,
    "STEP_STALL_S": 15,
    "ERROR_GRACE_S": 10,
    "START_LIMIT_S": 600,
    "LONGEST_PAUSE_S": 5,
    "DRAIN_S": 60,
    "X264_PRESET": "ultrafast",
    "MIN_FREE_BYTES": 4 << 20,
    "PREEMPT_AFTER_S": 0.5,
    "S3_CONNECT_TIMEOUT_S": 1,
    "S3_READ_TIMEOUT_S": 4,
    "STORAGE": f"s3://{BUCKET}",
    "REDIS_PATIENCE_S": 10,  # on a busy machine, Redis may take seconds
    "WEBHOOK_PRIVATE_HOSTS": "1",
    "WEBHOOK_TIMEOUT_S": 2,
}

ELASTIC = {  # four ranks on few cores take longer
    "RANKS": 4,
    "CONTEXT_PARALLEL": "auto",
    "STEP_STALL_S": 20,
}


@dataclass
class Site:
    """The whole installation. `crashed` names the programs that ended although no fault ended them."""

    folder: Path
    redis_server: NamedRedis
    s3: FaultyS3
    receiver: Receiver
    apis: dict[str, Daemon]
    workers: list[Worker]
    checkpoint: Path
    redis: Redis
    job_store: JobStore
    storage: Storage
    late_upload_s: float
    upload_disk: SharedDisk
    crashed: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Return whether each video is repeated to the bit: another number of ranks rounds otherwise."""
        return not any(worker.is_elastic for worker in self.workers)

    @property
    def uploads(self) -> list[str]:
        """Return the upload folders of the API's requests, also those that a killed process left."""
        return [path.name for path in self.upload_disk.seen_at.iterdir()]

    @property
    def steps(self) -> StepLog:
        return StepLog(self.checkpoint / "steps.log")

    def supervisors(self) -> dict[str, int | None]:
        """Return the process id of each worker's supervisor; None while it is being started."""
        found: dict[str, int | None] = {}
        for worker in self.workers:
            found[worker.name] = None
            with suppress(psutil.Error):  # it has just ended
                if worker.runs and (supervisor := worker.supervisor):
                    found[worker.name] = supervisor.pid
        return found

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the site, including orphans."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def start(self) -> None:
        for daemon in (*self.apis.values(), *self.workers):
            daemon.start()

    def repair(self) -> None:
        """Restart programs that ended by themselves, as a service manager would."""
        for daemon in (*self.apis.values(), *self.workers):
            if daemon.wanted and not daemon.runs:
                self.crashed.append(daemon.name)
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
            # torchrun and the ranks have no such setting: a socket in the folder is among their arguments.
            names_folder = data_dir.startswith(str(self.folder)) or str(self.folder) in " ".join(
                process.cmdline()
            )
            return names_folder and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Fleet:
    """What runs in a campaign beside Redis and the store.

    Attributes:
        num_workers: workers of this code and checkpoint, each with a group of two ranks.
        other_checkout: a folder with another version of the code. One API process and one more worker run it.
        other_checkpoint: the checkpoint of one more worker. It makes the same videos, perhaps not all.
        elastic: each worker has four ranks, which form a world.
    """

    num_workers: int = 2
    other_checkout: Path | None = None
    other_checkpoint: Path | None = None
    elastic: bool = False


@contextmanager
def open_site(folder: Path, checkpoint: Path, fleet: Fleet) -> Iterator[Site]:
    """Yield a started site, and end all its programs."""
    with ExitStack() as parts:
        redis_server = NamedRedis(folder / "redis", redis_program())
        redis_server.start()
        parts.callback(redis_server.stop)
        s3_server = parts.enter_context(run_s3_server(folder / "s3.log"))
        create_bucket(s3_server, BUCKET)
        s3 = parts.enter_context(faulty_s3(s3_server.endpoint_url))
        receiver = parts.enter_context(run_receiver())
        environment = _environment(s3_server, s3, checkpoint)
        apis = {f"http://127.0.0.1:{port}": port for port in (free_port(), free_port())}
        settings = _shared_settings(environment)
        mounted = can_mount()
        upload_disk = parts.enter_context(shared_disk(folder / UPLOADS, mounted=mounted))
        redis = connect(redis_server.url)

        def start_link(name: str) -> RedisLink:
            return parts.enter_context(run_redis_link(folder / f"redis-{name}.sock", redis_server.name))

        site = Site(
            folder=folder,
            redis_server=redis_server,
            s3=s3,
            receiver=receiver,
            apis={
                url: _api(folder, environment, start_link(f"api-{port}"), port, upload_disk, checkout)
                for (url, port), checkout in zip(
                    apis.items(), (ROOT, fleet.other_checkout or ROOT), strict=True
                )
            },
            workers=_workers(folder, environment, fleet, start_link, mounted=mounted),
            checkpoint=checkpoint,
            redis=redis,
            job_store=JobStore(redis, max_attempts=MAX_ATTEMPTS),
            storage=open_storage(settings),
            late_upload_s=settings.late_upload_s,
            upload_disk=upload_disk,
        )
        parts.callback(site.end)
        site.start()
        yield site


def _workers(
    folder: Path,
    environment: Mapping[str, str],
    fleet: Fleet,
    start_link: Callable[[str], RedisLink],
    *,
    mounted: bool,
) -> list[Worker]:
    names = iter("abcdefgh")

    def worker(environment: Mapping[str, str], checkout: Path = ROOT) -> Worker:
        name = next(names)
        return Worker.of(name, folder, environment, start_link(name), mounted=mounted, checkout=checkout)

    if fleet.elastic:
        environment = {**environment, **{f"LONGCAT_{name}": str(value) for name, value in ELASTIC.items()}}
    workers = [worker(environment) for _ in range(fleet.num_workers)]
    if fleet.other_checkout:
        workers.append(worker(environment, fleet.other_checkout))
    if fleet.other_checkpoint:
        checkpoint = shutil.copytree(fleet.other_checkpoint, folder / "other-checkpoint")
        (checkpoint / "steps.log").symlink_to(Path(environment["LONGCAT_CHECKPOINT"]) / "steps.log")
        workers.append(worker({**environment, "LONGCAT_CHECKPOINT": str(checkpoint)}))
    return workers


def _environment(server: S3Server, s3: FaultyS3, checkpoint: Path) -> dict[str, str]:
    settings = {
        **SETTINGS,
        "OWNER_REQUESTS_PER_S": "none",
        "CHECKPOINT": checkpoint,
        "S3_ENDPOINT_URL": s3.url,
        "S3_REGION": server.region,
        "S3_ACCESS_KEY_ID": server.access_key_id,
        "S3_SECRET_ACCESS_KEY": server.secret_access_key,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LONGCAT_")}
    ours = {f"LONGCAT_{name}": str(value) for name, value in settings.items()}
    return {**inherited, "OMP_NUM_THREADS": "1", **ours}


def _shared_settings(environment: Mapping[str, str]) -> SharedSettings:
    named = {name: environment.get(f"LONGCAT_{name.upper()}") for name in SharedSettings.model_fields}
    fields: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    return SharedSettings(**fields)


def _api(
    folder: Path,
    environment: Mapping[str, str],
    redis_link: RedisLink,
    port: int,
    upload_disk: SharedDisk,
    checkout: Path,
) -> Daemon:
    own = {
        "LONGCAT_PORT": str(port),
        "LONGCAT_DATA_DIR": str(folder / f"api-{port}"),
        "LONGCAT_UPLOAD_DIR": str(upload_disk.folder),
    }
    command = [*upload_disk.entering, sys.executable, "-m", "service"]
    log = folder / f"api-{port}.log"
    return Daemon(f"api {port}", command, {**environment, **own}, redis_link, log, checkout=checkout)


def now() -> float:
    """Return the time by the clock of the step log."""
    return time.time()
