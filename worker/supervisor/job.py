"""A job in this supervisor's hands, from its claim to its end.

Several threads look at it: the keeper writes what the job_store says, the supervisor what the group says, and
whoever closes it reads both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import DiskFull, LeaseLost, LongCatError
from jobs.record import JobError, Progress
from jobs.store.holder import Lease, StopReason
from worker.messages import Checkpoint, Timings, VideoFile
from worker.stages import Stages


@dataclass(eq=False)
class ClaimedJob:
    """A claimed job. `folder` is its own in the spool; `verdict` is what the job_store said last.

    `save` is the latest of which the storage has all files.
    """

    claim: Lease
    folder: Path
    verdict: StopReason | None = None
    progress: Progress = field(default_factory=lambda: Progress(phase="load"))
    timings_s: Timings = field(default_factory=dict)
    save: Checkpoint | None = None
    stages: Stages = field(default_factory=Stages)
    is_over: bool = False

    @property
    def job_id(self) -> str:
        """The job's."""
        return self.claim.job.id

    @property
    def wish(self) -> StopReason | None:
        """Why the group is to leave it, if it is. What makes way for another job is drained, too."""
        match self.verdict:
            case "preempt":
                return "drain"
            case why:
                return why

    def check_lease(self) -> None:
        """Raise LeaseLost if it is somebody else's by now."""
        if self.verdict == "lease_lost":
            raise LeaseLost("the lease ran out")


@dataclass(frozen=True)
class Completed:
    """The film is whole: store it."""

    film: VideoFile


@dataclass(frozen=True)
class Errored:
    """It cannot be done."""

    error: JobError


@dataclass(frozen=True)
class Abandoned:
    """The group left it, as it was told to."""

    reason: StopReason


@dataclass(frozen=True)
class Requeued:
    """It goes back to the queue; `crashed` if the group died under it."""

    crashed: bool


Ending = Completed | Errored | Abandoned | Requeued


class Interrupted(Exception):
    """What is done for a job ends here: it was cancelled, or this supervisor is about to end."""


def as_job_error(error: LongCatError | OSError) -> JobError:
    """The error as the record shows it; what the file system says is the worker's disk."""
    if isinstance(error, OSError):
        error = DiskFull(f"the worker's disk does not take the job's files: {error.strerror}")
    return JobError(code=error.code, message=error.message, retryable=error.retryable)
