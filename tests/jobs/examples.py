"""Orders, submissions and results to try things with, and a clock that moves when it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.errors import Unavailable
from jobs.record import Job, Result
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import new_job_id, thumbnail_key, video_key
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from tests.orders import make_order

LEASE_S = 30.0
LATE_UPLOAD_S = 300.0
ORDER = make_order()


@dataclass
class Clock:
    """Milliseconds that pass when a test says so."""

    now_ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


@dataclass
class Desk:
    """A job_store with a clock of its own, and the few steps that most tests begin with."""

    job_store: JobStore
    clock: Clock

    @classmethod
    def open(cls, redis: Redis, **options: Any) -> Desk:
        clock = Clock()
        return cls(JobStore(redis, clock=clock, **{"late_upload_s": LATE_UPLOAD_S, **options}), clock)

    def submit(self, **fields: Any) -> Job:
        return self.job_store.client.submit(a_submission(**fields))

    def claim(self, group: str = "a") -> Lease:
        claim = self.job_store.holder.claim(group, LEASE_S)
        assert claim is not None
        return claim

    def start(self, **fields: Any) -> Lease:
        """Submit a job and claim it."""
        job = self.submit(**fields)
        claim = self.claim()
        assert claim.job.id == job.id
        return claim

    def position(self, job_id: str) -> int | None:
        """Return the job's place in the queue, None if it is not queued."""
        estimate = self.job_store.client.estimate(job_id)
        return estimate.position if estimate else None

    def settle(self) -> None:
        """Let all files arrive that are on their way to the storage."""
        self.clock.advance(LATE_UPLOAD_S)

    def look_through_files(self) -> set[str]:
        """Say of all jobs whose files are to be looked through that this was done; those jobs."""
        due = self.job_store.maintenance.due_file_removals()
        for job_id, since in due.items():
            self.job_store.maintenance.confirm_file_removal(job_id, since)
        return set(due)

    def lose_lease(self) -> None:
        """Let all leases run out, seen by sweepers that never slept, and sweep."""
        for _ in range(int(LEASE_S) + 1):
            self.job_store.maintenance.sweep()
            self.clock.advance(1)
        self.job_store.maintenance.sweep()


@dataclass
class AwayStorage:
    """A storage of which nothing can be removed at the moment."""

    storage: FolderStorage
    is_away: bool = True

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        if self.is_away:
            raise Unavailable("the store cannot be reached")
        self.storage.delete_prefix(prefix, keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)


@dataclass
class SlowStorage:
    """A storage that finishes each upload when its client has given up."""

    storage: FolderStorage
    taken_in: list[tuple[str, Path, str]] = field(default_factory=list)

    def put(self, key: str, path: Path, media_type: str) -> None:
        self.taken_in.append((key, path, media_type))
        raise Unavailable("the store did not answer in time")

    def finish(self) -> None:
        while self.taken_in:
            self.storage.put(*self.taken_in.pop())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)


def keys_of(redis: Redis, pattern: str = "*") -> set[str]:
    """The names of all keys that match."""
    return {key.decode() if isinstance(key, bytes) else key for key in redis.keys(pattern)}


def a_submission(**fields: Any) -> Submission:
    return Submission(**{"id": new_job_id(), "order": ORDER, **fields})


def a_result(claim: Lease) -> Result:
    return Result(
        video_key=video_key(claim.job.id, claim.attempt),
        thumbnail_key=thumbnail_key(claim.job.id, claim.attempt),
        width=832,
        height=480,
        num_frames=93,
        fps=15,
        duration_s=6.2,
        size_bytes=1000,
        sha256="0" * 64,
        seed=7,
    )
