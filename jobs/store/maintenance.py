"""Handle leases, deadlines and retentions that run out, and files to remove: the role of every process."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import DeadlineExceeded, WorkerCrashed
from jobs.record import JobError
from jobs.store.scripts import Scripts, text, to_json, to_ms

WAITED_TOO_LONG = JobError.of(DeadlineExceeded("the job waited longer than allowed before a worker began it"))

REMOVAL_LEASE_S = 60.0


def crash_error(reason: str | None = None) -> JobError:
    """Return the error of a job whose last attempt crashed, for this reason if it is known."""
    message = "the worker crashed in every attempt that the job has"
    return JobError.of(WorkerCrashed(f"{message}; the last time: {reason}" if reason else message))


@dataclass(frozen=True)
class FileRemoval:
    """A job whose unneeded files are to be removed, and the time since when."""

    job_id: str
    since: str


@dataclass(frozen=True)
class SweepResult:
    """The jobs that a sweep changed, by id.

    Attributes:
        by_other: another process swept a moment ago, so this one changed nothing.
    """

    requeued: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    by_other: bool = False


class JobMaintenance:
    """The maintenance of all jobs. Any process may do it at any time."""

    def __init__(self, redis: Redis, scripts: Scripts, late_upload_s: float) -> None:
        self._redis = redis
        self._run = scripts.run
        self._late_upload_s = late_upload_s
        self._sweeper_token = uuid4().hex

    def sweep(self) -> SweepResult:
        """Requeue jobs whose lease ran out, fail those that waited too long, remove those that expired.

        Call it about once a second, from any number of processes. One of them sweeps for all. When it stops,
        another one takes over within two seconds. Leases do not run out while nobody sweeps: Redis was away
        then, and no holder could renew one.
        """
        ids: dict[str, list[str]] = {}
        replies = self._run(
            "sweep",
            token=self._sweeper_token,
            crash_error=to_json(crash_error()),
            overdue_error=to_json(WAITED_TOO_LONG),
        )
        if replies is None:
            return SweepResult(by_other=True)
        for what, job_id in replies:
            ids.setdefault(what.decode(), []).append(job_id.decode())
        requeued, ended, expired = (tuple(ids.get(what, ())) for what in ("requeued", "ended", "expired"))
        return SweepResult(requeued, ended, expired)

    def num_tickets_needed(self) -> dict[str, int]:
        """Return how many tickets there should be for each requirement.

        That is one for each queued job, none if no job with the requirement may start.
        """
        return {text(requirement): num for requirement, num in self._run("num_tickets_needed")}

    def lease_file_removal(self, job_id: str | None = None) -> FileRemoval | None:
        """Lease the next job whose unneeded files are to be removed, or this job if it is due.

        Return None if there is none. A removal that is not confirmed is due again when the lease ends.
        """
        reply = self._run("lease_file_removal", id=job_id, lease_ms=to_ms(REMOVAL_LEASE_S))
        return FileRemoval(reply[0].decode(), reply[1].decode()) if reply else None

    def release_file_removal(self, removal: FileRemoval) -> None:
        """End the lease of a removal that failed, so that it is due again."""
        self._run("release_file_removal", id=removal.job_id)

    def confirm_file_removal(self, removal: FileRemoval) -> None:
        """Confirm a removal. The first time it is due again `late_upload_s` later.

        S3 may complete an upload that its client gave up on.
        """
        late_ms = to_ms(self._late_upload_s)
        self._run("confirm_file_removal", id=removal.job_id, since=removal.since, late_ms=late_ms)

    def report_late_file(self, job_id: str) -> None:
        """Report that a former holder may have stored a file. It is removed if the job has ended."""
        self._run("report_late_file", id=job_id)

    def owns_files(self, job_id: str) -> bool:
        """Return whether files of this id may be in storage: it is a job, reserved, or being removed."""
        with redis_reached(), self._redis.pipeline() as pipeline:
            pipeline.exists(f"longcat:job:{job_id}")
            pipeline.zscore("longcat:file_removals:first", job_id)
            pipeline.zscore("longcat:file_removals:second", job_id)
            exists, *removals = pipeline.execute()
        return bool(exists) or any(due_ms is not None for due_ms in removals)
