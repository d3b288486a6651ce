"""Provide real backends, claimed jobs, videos and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.errors import Unavailable
from jobs.order import Order
from jobs.queue import TicketQueue
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import new_job_id
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from tests.worker.examples import ORDER
from worker.digest import sha256_of
from worker.messages import Checkpoint, VideoFile
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.job import ClaimedJob
from worker.supervisor.spool import Spool

LEASE_S = 60.0


class InterruptibleStorage(FolderStorage):
    """A folder that can be unavailable, as an S3 store can, and counts what it has refused then."""

    is_available = True
    num_refused = 0

    def put(self, key: str, path: Path, media_type: str) -> None:
        self._check()
        super().put(key, path, media_type)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        self._check()
        return super().read(key, start, end)

    def fetch(self, key: str, path: Path) -> None:
        self._check()
        super().fetch(key, path)

    def size_bytes(self, key: str) -> int:
        self._check()
        return super().size_bytes(key)

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        self._check()
        super().delete_prefix(prefix, keep)

    def _check(self) -> None:
        if not self.is_available:
            self.num_refused += 1
            raise Unavailable("the storage is unavailable")


class LocalBackends:
    """A job store in Redis, and a storage and a spool in a folder."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.job_store = JobStore(redis, max_attempts=2, late_upload_s=0.0)
        self.tickets = TicketQueue(redis)
        self.storage = InterruptibleStorage(folder / "storage")
        self.spool = Spool(folder / "spool")
        self.checkpoints = CheckpointUploader(self.job_store, self.storage, self.spool)

    def submit(self, order: Order = ORDER, **fields: Any) -> str:
        job_id = new_job_id()
        self.job_store.client.submit(Submission(job_id, order, **fields))
        return job_id

    def claim(self, group: str = "a") -> Lease:
        lease = self.job_store.holder.claim(group, LEASE_S)
        assert lease is not None
        return lease

    def claimed_job(self, lease: Lease | None = None) -> ClaimedJob:
        """Return a claimed job with its folder. Without a lease, submit and claim a new job."""
        if lease is None:
            self.submit()
            lease = self.claim()
        return ClaimedJob(lease, self.spool.make_job_folder(lease.job.id))

    def claim_elsewhere(self, job: ClaimedJob) -> Lease:
        """Let another group claim the job, as after the lease has expired."""
        self.job_store.holder.requeue(job.lease, crashed=True)
        return self.claim("other")

    def confirm_file_removals(self) -> None:
        """Confirm all due file removals, both rounds of them."""
        for _ in range(2):
            while removal := self.job_store.maintenance.lease_file_removal():
                self.job_store.maintenance.confirm_file_removal(removal)

    def stored(self, job: ClaimedJob) -> list[str]:
        """Return the keys of the job's files in storage, without its prefix."""
        return [key.split("/", 2)[2] for key in self.storage.keys(f"jobs/{job.job_id}/")]


def write_video(folder: Path) -> VideoFile:
    """Write small files that take the place of a finished video."""
    (folder / "video.mp4").write_bytes(b"video")
    (folder / "thumbnail.jpg").write_bytes(b"thumbnail")
    return VideoFile(
        video="video.mp4",
        thumbnail="thumbnail.jpg",
        width=96,
        height=64,
        num_frames=9,
        fps=15,
        size_bytes=5,
        sha256="5",
    )


FRACTION = 0.4
"""The share of the job that each checkpoint of `write_checkpoint` says that it has saved."""


def write_checkpoint(folder: Path, step: int, segment: int = 0) -> Checkpoint:
    """Write small files that take the place of a checkpoint and of the segments before it."""
    checkpoint = Checkpoint(
        segment=segment,
        stage="denoise",
        step=step,
        fraction=FRACTION,
        state=f"state-{segment}-denoise-{step}.safetensors",
        segment_files=tuple(f"piece-{i:03}.mp4" for i in range(segment)),
        timings_s={"denoise": 2.0},
    )
    for name in checkpoint.files:
        (folder / name).write_text(name)
    return checkpoint.model_copy(
        update={"digests": {name: sha256_of(folder / name) for name in checkpoint.files}}
    )
