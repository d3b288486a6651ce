"""Orders, films, saves and held jobs to try things with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.errors import Unavailable
from jobs.order import Order
from jobs.queue import TicketQueue
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import new_job_id
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from tests.orders import make_order
from worker.messages import Checkpoint, VideoFile
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.finalize import Places
from worker.supervisor.job import ClaimedJob
from worker.supervisor.spool import Spool

ORDER = make_order(
    prompts=("a cat",),
    negative_prompt=None,
    height=64,
    width=96,
    num_frames=9,
    num_inference_steps=4,
    guidance_scale=1.0,
    enhance_hf=False,
    seed=1,
)
LEASE_S = 60.0


class ClosableStorage(FolderStorage):
    """A folder that can be away, as an S3 store can."""

    is_away = False

    def put(self, key: str, path: Path, media_type: str) -> None:
        self._check()
        super().put(key, path, media_type)

    def size_bytes(self, key: str) -> int:
        self._check()
        return super().size_bytes(key)

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        self._check()
        super().delete_prefix(prefix, keep)

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("the storage is away")


class Desk:
    """Real places: a job_store in Redis, a storage and a spool in a folder."""

    def __init__(self, redis: Any, folder: Path) -> None:
        self.redis = redis
        self.job_store = JobStore(redis, max_attempts=2, late_upload_s=0.0)
        self.tickets = TicketQueue(redis)
        self.storage = ClosableStorage(folder / "storage")
        self.spool = Spool(folder / "spool")
        self.saves = CheckpointUploader(self.job_store, self.storage, self.spool)
        self.places = Places(self.job_store, self.tickets, self.storage, self.spool, self.saves)
        self._held: list[ClaimedJob] = []

    def submit(self, order: Order = ORDER, **fields: Any) -> str:
        job_id = new_job_id()
        self.job_store.client.submit(Submission(job_id, order, **fields))
        return job_id

    def claim(self, group: str = "a") -> Lease:
        claim = self.job_store.holder.claim(group, LEASE_S)
        assert claim is not None
        return claim

    def hold(self, claim: Lease | None = None) -> ClaimedJob:
        """A claimed job with its folder; a new one, if none is given."""
        if claim is None:
            self.submit()
            claim = self.claim()
        self._held.append(ClaimedJob(claim, self.spool.folder(claim.job.id)))
        return self._held[-1]

    def close(self) -> None:
        """Store nothing more: the thread that does has no end, and would tell the next test's job_store."""
        for held in self._held:
            self.saves.forget(held, 30)

    def take_over(self, held: ClaimedJob) -> Lease:
        """Somebody else gets the job, as when the lease ran out."""
        self.job_store.holder.requeue(held.claim, crashed=True)
        return self.claim("somebody else")

    def forget_files(self) -> None:
        """Say of all jobs whose files are to be looked through that this was done, both times."""
        for _ in range(2):
            for job_id, since in self.job_store.maintenance.due_file_removals().items():
                self.job_store.maintenance.confirm_file_removal(job_id, since)

    def stored(self, held: ClaimedJob) -> list[str]:
        """The job's files in storage, without its prefix."""
        return [key.split("/", 2)[2] for key in self.storage.keys(f"jobs/{held.job_id}/")]


def a_film(folder: Path) -> VideoFile:
    """A film that is none, but lies there."""
    (folder / "video.mp4").write_bytes(b"film")
    (folder / "thumbnail.jpg").write_bytes(b"still")
    return VideoFile(
        video="video.mp4",
        thumbnail="thumbnail.jpg",
        width=96,
        height=64,
        num_frames=9,
        fps=15,
        size_bytes=4,
        sha256="5",
    )


def a_save(folder: Path, step: int, segment: int = 0) -> Checkpoint:
    """A save whose files lie there; it has a piece for each segment before it."""
    save = Checkpoint(
        segment=segment,
        stage="denoise",
        step=step,
        state=f"state-{segment}-denoise-{step}.safetensors",
        pieces=tuple(f"piece-{i:03}.mp4" for i in range(segment)),
        timings_s={"denoise": 2.0},
    )
    for name in save.files:
        (folder / name).write_text(name)
    return save
