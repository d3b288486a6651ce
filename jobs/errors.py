"""Define the errors of jobs and requests. Each has a stable code and states whether a retry can help.

The service adds the HTTP status. The worker stores them in the record.
"""

from __future__ import annotations

import errno
from typing import ClassVar

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
UNWRITABLE_ERRNOS = DISK_FULL_ERRNOS | {errno.EROFS}
"""The errors of a disk that takes no files. Without inodes, it is ENOSPC, too."""


class LongCatError(Exception):
    """The base of all errors: `code` is stable and for programs, the message is for people."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(LongCatError):
    """The request breaks a rule; `field` names the field."""

    code = "invalid_request"


class InvalidInput(InvalidRequest):
    """An image or a video cannot be used: it does not decode, is too large, or has an unknown format."""

    code = "invalid_input"


class QualityNotAllowed(InvalidRequest):
    """This service does not make videos of the quality that was asked for."""

    code = "quality_not_allowed"


class JobNotFound(LongCatError):
    """There is no such job, it expired, or it belongs to another owner."""

    code = "job_not_found"


class JobNotReady(LongCatError):
    """The job has no result, or none yet."""

    code = "job_not_ready"


class JobEnded(LongCatError):
    """The job is in a final state, which never changes."""

    code = "job_ended"


class NoCapability(LongCatError):
    """No worker has published what it can make."""

    code = "no_worker"
    retryable = True


class NoSuitableGroup(NoCapability):
    """Groups that can run this request exist, but none has been up for a long time."""

    code = "no_suitable_worker"


class Unavailable(LongCatError):
    """Redis or the storage cannot be reached, or this process is stopping."""

    code = "unavailable"
    retryable = True


class OutOfMemory(LongCatError):
    """The job does not fit into the memory of the group."""

    code = "out_of_memory"


class GenerationFailed(LongCatError):
    """The model failed on this job in the same way on every rank."""

    code = "generation_failed"


class WorkerCrashed(LongCatError):
    """The group crashed in every attempt that the job has."""

    code = "worker_crashed"
    retryable = True


class UploadFailed(LongCatError):
    """The finished video could not be uploaded in time."""

    code = "upload_failed"
    retryable = True


class DiskFull(LongCatError):
    """A disk of the service or of the worker is full, or the worker's cannot be written."""

    code = "disk_full"
    retryable = True


class DeadlineExceeded(LongCatError):
    """The job waited or ran longer than its limit."""

    code = "deadline_exceeded"
    retryable = True


class LeaseLost(LongCatError):
    """Another worker holds this job now, so calls of its former holder are refused."""

    code = "lease_lost"


class KeyReused(LongCatError):
    """The idempotency key was used for another request before."""

    code = "idempotency_key_reused"


class LimitReached(LongCatError):
    """The owner, or all owners together, reached the limit that `limit` names."""

    code = "limit_reached"
    retryable = True

    def __init__(self, limit: str, bound: str, retry_after_s: int) -> None:
        super().__init__(f"{limit}: at most {bound}; try again in {retry_after_s} s")
        self.limit = limit
        self.retry_after_s = retry_after_s


class KeyMissing(LongCatError):
    """The storage holds nothing under this key."""

    code = "key_missing"


class GroupTaken(LongCatError):
    """Another worker is registered under this group's name."""

    code = "group_taken"


class UnreadableRecord(LongCatError):
    """Another release wrote this record in a form that this one cannot read; it can be deleted."""

    code = "unreadable_record"


class UnfitServer(LongCatError):
    """This Redis server, or what is in it, cannot be used by this release."""

    code = "unfit_server"


JOB_ERRORS: tuple[type[LongCatError], ...] = (
    LongCatError,
    InvalidInput,
    OutOfMemory,
    GenerationFailed,
    WorkerCrashed,
    UploadFailed,
    DiskFull,
    DeadlineExceeded,
)
"""The errors with which a job can fail."""
