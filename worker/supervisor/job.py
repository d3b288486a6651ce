"""Define a claimed job: its lease, its state and its outcome.

Several threads use a `ClaimedJob`. The lease renewer writes `stop_request`, the supervisor's thread `state`.
`progress` is written by the fetcher, then by the supervisor's thread. The finalizer reads all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import UNWRITABLE_ERRNOS, DiskFull, LeaseLost, LongCatError
from jobs.record import JobError, Progress
from jobs.store.holder import Lease, StopReason
from worker.messages import JOB_ERROR, Checkpoint, RunJob, Timings, VideoFile
from worker.supervisor.states import JobState, change
from worker.supervisor.timeline import JobTimeline


@dataclass(eq=False)
class ClaimedJob:
    """A job that this supervisor holds the lease of.

    Attributes:
        folder: the job's folder in the spool.
        run: the message that starts it on rank 0, once its inputs are fetched.
        stop_request: why the job is to stop, None while it is not.
        num_gpus: the number of GPUs that run it, None before it is known.
        checkpoint: the latest checkpoint of which the storage has all files.
        failed_checkpoint: the latest checkpoint that could not be uploaded. Only this disk has its state.
    """

    lease: Lease
    folder: Path
    state: JobState = JobState.FETCHING
    run: RunJob | None = None
    stop_request: StopReason | None = None
    num_gpus: int | None = None
    progress: Progress = field(init=False)
    timings_s: Timings = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    failed_checkpoint: Checkpoint | None = None
    timeline: JobTimeline = field(default_factory=JobTimeline)

    def __post_init__(self) -> None:
        """Begin with the progress in the record, which a job has that was saved or whose video was made."""
        job = self.lease.job
        self.progress = job.progress or Progress(phase="load", num_segments=job.order.plan.num_segments)

    @property
    def job_id(self) -> str:
        """Return the id of the job."""
        return self.lease.job.id

    @property
    def error_of_rank(self) -> JobError | None:
        """Return the error that ended the job together with its group, if a rank wrote one."""
        try:
            return JobError.model_validate_json((self.folder / JOB_ERROR).read_text())
        except (OSError, ValueError):
            return None

    def enter(self, state: JobState) -> None:
        """Change to this state. Raises IllegalTransition."""
        self.state = change(self.state, state)

    def check_lease(self) -> None:
        """Raise LeaseLost if another worker holds the job now."""
        if self.stop_request == "lease_lost":
            raise LeaseLost("another worker holds the job, or it has ended")


@dataclass(frozen=True)
class Completed:
    """The video is complete and has to be stored."""

    video: VideoFile


@dataclass(frozen=True)
class Failed:
    """The job cannot be done."""

    error: JobError


@dataclass(frozen=True)
class Stopped:
    """The job stopped before its end because it was asked to."""

    reason: StopReason


@dataclass(frozen=True)
class Requeued:
    """The job has to run again.

    Attributes:
        crashed: its GPU group died, which uses up an attempt.
        reason: why it died, for people; two outcomes are the same without it.
    """

    crashed: bool
    reason: str | None = field(default=None, compare=False)


Outcome = Completed | Failed | Stopped | Requeued


def as_job_error(error: LongCatError | OSError) -> JobError:
    """Return the error as the job's record shows it. An OSError means that the worker's disk failed."""
    if isinstance(error, OSError):
        message = f"the worker cannot use the job's files on its disk: {error.strerror or error}"
        error = DiskFull(message) if error.errno in UNWRITABLE_ERRNOS else LongCatError(message)
    return JobError.of(error)
