"""What the supervisor of a group and rank 0 of it say to each other: typed messages, one JSON line each.

They speak over a unix socket in a folder that nobody else may enter. Down go orders and the wish to stop;
up come progress, saved states and the finished film. Neither side knows how the other does its work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jobs.capability import Capability
from jobs.order import Order
from jobs.record import JobError, Progress
from jobs.store.holder import StopReason
from worker.telemetry import Stage

Timings = dict[str, float]  # phase: seconds

SAVE_BEFORE_STOP: frozenset[StopReason] = frozenset({"preempt", "drain"})
"""The reasons for which a job will be resumed: the rank saves its state before it stops."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Checkpoint(_Message):
    """Where a job stood when it was saved, as files of its folder.

    `step` steps of this stage of this segment are done; the segments before it lie finished in
    `segment_files`.
    """

    segment: int
    stage: Literal["denoise", "refine"]
    step: int
    state: str
    segment_files: tuple[str, ...] = ()
    timings_s: Timings = Field(default_factory=dict)

    @property
    def position(self) -> tuple[int, bool, int]:
        """Sorts saves of one job: the later one is greater."""
        return self.segment, self.stage == "refine", self.step

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are needed to go on from here."""
        return (self.state, *self.segment_files)


class VideoFile(_Message):
    """A finished film and its thumbnail, as files of the job's folder; size and hash are the film's.

    `dtype` is what the group multiplied in, as its capability says it.
    """

    video: str
    thumbnail: str
    width: int
    height: int
    num_frames: int
    fps: int
    size_bytes: int
    sha256: str
    dtype: str | None = None


class RunJob(_Message):
    """Do this order; `folder` is the job's own, `inputs` name the order's files in it.

    `timings_s` is what it took so far, earlier attempts included; `log_context` is what log lines about it
    carry, with W3C's `traceparent` of the request that ordered it.
    """

    type: Literal["run"] = "run"
    job_id: str
    order: Order
    folder: Path
    inputs: dict[str, str] = Field(default_factory=dict)
    resume: Checkpoint | None = None
    timings_s: Timings = Field(default_factory=dict)
    log_context: dict[str, str] = Field(default_factory=dict)


class StopJob(_Message):
    """Stop this job at the next step; save its state first if the reason is in `SAVE_BEFORE_STOP`."""

    type: Literal["stop"] = "stop"
    job_id: str
    reason: StopReason


class Ready(_Message):
    """The model is loaded and warm on every rank; `pids` are the ranks' processes."""

    type: Literal["ready"] = "ready"
    capability: Capability
    pids: tuple[int, ...]


class JobStarted(_Message):
    """All ranks have the order."""

    type: Literal["running"] = "running"
    job_id: str


class ProgressReport(_Message):
    """How far a job is; sent at every boundary."""

    type: Literal["report"] = "report"
    job_id: str
    progress: Progress
    timings_s: Timings


class StageDone(_Message):
    """Something was done for a job beside what its ranks do in step."""

    type: Literal["did"] = "did"
    job_id: str
    stage: Stage


class LastDecode(_Message):
    """The last steps of a job are done: its ranks decode what is left of it, and are free then."""

    type: Literal["decoding"] = "decoding"
    job_id: str


class CheckpointSaved(_Message):
    """A job can go on from here, on this group or on another."""

    type: Literal["saved"] = "saved"
    job_id: str
    save: Checkpoint


class GpusReleased(_Message):
    """The GPUs are free for the next order; this job's film is being finished."""

    type: Literal["released"] = "released"
    job_id: str


class VideoDone(_Message):
    """The film is whole."""

    type: Literal["finished"] = "finished"
    job_id: str
    video: VideoFile
    timings_s: Timings


class JobStopped(_Message):
    """The job was left as wished; the GPUs are free."""

    type: Literal["stopped"] = "stopped"
    job_id: str
    reason: StopReason


class JobFailed(_Message):
    """The job cannot be done; the group is well. Before `GpusReleased` the GPUs are free with it."""

    type: Literal["failed"] = "failed"
    job_id: str
    error: JobError
    timings_s: Timings


class GroupFailed(_Message):
    """The group is no longer sound and about to end."""

    type: Literal["broken"] = "broken"
    message: str


JobMessage = (
    JobStarted
    | ProgressReport
    | StageDone
    | LastDecode
    | CheckpointSaved
    | GpusReleased
    | VideoDone
    | JobStopped
    | JobFailed
)  # of one job
Message = RunJob | StopJob | Ready | JobMessage | GroupFailed

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def parse(line: bytes) -> Message:
    """Return the message of a JSON line."""
    return _MESSAGE.validate_json(line)
