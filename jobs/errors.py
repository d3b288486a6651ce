"""The errors that a job or a request can end with: each has a stable code and says if a retry can help.

The service adds the HTTP status; the worker puts them into the record. Neither invents another shape.
"""

from __future__ import annotations

from typing import ClassVar


class LongCatError(Exception):
    """The root: `code` is stable and for programs, the message is for people."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(LongCatError):
    """The request breaks a rule; `field` names where."""

    code = "invalid_request"


class InvalidInput(InvalidRequest):
    """An image or a clip that cannot be used: does not decode, too large, a kind nobody reads."""

    code = "invalid_input"


class QualityNotAllowed(InvalidRequest):
    """This service does not make videos of the quality that was asked for."""

    code = "quality_not_allowed"


class JobNotFound(LongCatError):
    """No such job, or it expired, or it belongs to somebody else."""

    code = "job_not_found"


class JobNotReady(LongCatError):
    """The job has no result (yet)."""

    code = "job_not_ready"


class JobEnded(LongCatError):
    """The job is in a final state, which nothing changes."""

    code = "job_ended"


class NoCapability(LongCatError):
    """No worker has ever said what may be ordered."""

    code = "no_worker"
    retryable = True


class Unavailable(LongCatError):
    """Redis or the storage cannot be reached."""

    code = "unavailable"
    retryable = True


class OutOfMemory(LongCatError):
    """The job does not fit into the memory of the group."""

    code = "out_of_memory"


class GenerationFailed(LongCatError):
    """The model refused or failed on this job, on every rank alike."""

    code = "generation_failed"


class WorkerCrashed(LongCatError):
    """The group died under this job as often as a job may try."""

    code = "worker_crashed"
    retryable = True


class UploadFailed(LongCatError):
    """The finished video could not be stored within the time allowed."""

    code = "upload_failed"
    retryable = True


class DiskFull(LongCatError):
    """The worker's disk has no room for the video."""

    code = "disk_full"
    retryable = True


class DeadlineExceeded(LongCatError):
    """The job waited or ran longer than it may."""

    code = "deadline_exceeded"
    retryable = True


class LeaseLost(LongCatError):
    """Somebody else holds this job by now; what this holder says no longer counts."""

    code = "lease_lost"


class KeyReused(LongCatError):
    """The idempotency key was given to another request before."""

    code = "idempotency_key_reused"


class LimitReached(LongCatError):
    """The caller, or all callers together, have as much as they may at a time; `limit` says of what."""

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
    """Another worker is alive under this group's name."""

    code = "group_taken"


class UnfitServer(LongCatError):
    """This Redis cannot carry the queue."""

    code = "unfit_server"
