"""Example orders, submissions and results; a job store whose clock the test moves; faulty storages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.errors import Unavailable
from jobs.record import Job, QueueEstimate, Result
from jobs.requirement import Requirement
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import new_job_id, thumbnail_key, video_key
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.scripts import text
from jobs.store.submission import Submission
from tests.orders import make_order

LEASE_S = 30.0
LATE_UPLOAD_S = 300.0
ORDER = make_order()
REQUIREMENT = str(Requirement.of(ORDER))


@dataclass
class Clock:
    """A clock in milliseconds that stands still until a test moves it."""

    now_ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


class ExampleStore(JobStore):
    """A job store with a clock of its own, and the few steps that most tests begin with."""

    def __init__(self, redis: Redis, **options: Any) -> None:
        self.clock = Clock()
        self.redis = redis
        super().__init__(redis, clock=self.clock, **{"late_upload_s": LATE_UPLOAD_S, **options})

    def submit(self, **fields: Any) -> Job:
        return self.client.submit(a_submission(**fields)).job

    def claim(self, group: str = "a") -> Lease:
        claim = self.holder.claim(group, LEASE_S)
        assert claim is not None
        return claim

    def start(self, **fields: Any) -> Lease:
        """Submit a job and claim it."""
        job = self.submit(**fields)
        claim = self.claim()
        assert claim.job.id == job.id
        return claim

    def estimate(self, job_id: str) -> QueueEstimate:
        """Return the estimate for a job that must be queued."""
        estimate = self.client.estimate(job_id)
        assert estimate is not None
        return estimate

    def position(self, job_id: str) -> int:
        """Return the place in the queue of a job that must be queued."""
        return self.estimate(job_id).position

    def wait_for_late_uploads(self) -> None:
        """Advance the clock until no upload can arrive in the storage any longer."""
        self.clock.advance(LATE_UPLOAD_S)

    def confirm_all_file_removals(self) -> set[str]:
        """Confirm all due file removals, and return their jobs."""
        confirmed = set()
        while removal := self.maintenance.lease_file_removal():
            self.maintenance.confirm_file_removal(removal)
            confirmed.add(removal.job_id)
        return confirmed

    @property
    def due_file_removals(self) -> set[str]:
        """Return the jobs whose files are to be removed now."""
        keys = ("longcat:file_removals:first", "longcat:file_removals:second")
        found = [self.redis.zrangebyscore(key, "-inf", self.clock.now_ms) for key in keys]
        return {text(job_id) for ids in found for job_id in ids}

    def lose_lease(self) -> None:
        """Let all leases run out while sweeps go on."""
        for _ in range(int(LEASE_S) + 1):
            self.maintenance.sweep()
            self.clock.advance(1)
        self.maintenance.sweep()


@dataclass
class AwayStorage:
    """A storage from which nothing can be removed while it is away."""

    storage: FolderStorage
    is_away: bool = True

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        if self.is_away:
            raise Unavailable("the store cannot be reached")
        self.storage.delete_prefix(prefix, keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)


@dataclass
class CountingStorage:
    """A storage that counts how often files are removed."""

    storage: FolderStorage
    num_removals: int = 0

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        self.num_removals += 1
        self.storage.delete_prefix(prefix, keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)


@dataclass
class SlowStorage:
    """A storage that completes each upload after its client gave up."""

    storage: FolderStorage
    pending: list[tuple[str, Path, str]] = field(default_factory=list)

    def put(self, key: str, path: Path, media_type: str) -> None:
        self.pending.append((key, path, media_type))
        raise Unavailable("the store did not answer in time")

    def finish(self) -> None:
        while self.pending:
            self.storage.put(*self.pending.pop())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)


def keys_of(redis: Redis, pattern: str = "*") -> set[str]:
    """Return the names of all keys that match."""
    return {key.decode() if isinstance(key, bytes) else key for key in redis.keys(pattern)}


def a_submission(**fields: Any) -> Submission:
    return Submission(**{"id": new_job_id(), "order": ORDER, **fields})


def a_result(claim: Lease) -> Result:
    return Result(
        video_key=video_key(claim.job.id, claim.fence),
        thumbnail_key=thumbnail_key(claim.job.id, claim.fence),
        width=832,
        height=480,
        num_frames=93,
        fps=15,
        duration_s=6.2,
        size_bytes=1000,
        sha256="0" * 64,
        seed=7,
    )
