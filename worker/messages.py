"""Define the messages between the supervisor of a GPU group and its rank 0, or a world and all its ranks.

`worker.channel` carries them as one JSON line each. The supervisor sends `RunJob` and `StopJob`; ranks send
all others. `Ready` names the version of all messages: both sides must have the same, but a program that is
replaced while its supervisor runs starts ranks of another release. Checkpoints outlive a release: they are
stored in the job's record.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from jobs.capability import Capability
from jobs.order import Order, Priority
from jobs.record import JobError, Progress
from jobs.storage.keys import checked
from jobs.store.holder import StopReason
from worker.telemetry import Interval

PROTOCOL_VERSION = 3
JOB_ERROR = "job-error.json"
"""The file in a job's folder with the `JobError` that ended the job together with its group."""
CHECKPOINT_VERSION = 3
"""The newest version of checkpoints, with their files, that this release reads."""

Timings = dict[str, float]
"""Seconds that a job spent in each phase, over all its attempts."""

SAVE_BEFORE_STOP: frozenset[StopReason] = frozenset({"preempt", "drain", "resize"})
"""The reasons for which a job will be resumed: rank 0 saves a checkpoint before the job stops."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Checkpoint(_Message):
    """Describe a state from which a job can resume. Files are named relative to the job's folder.

    A checkpoint of a later version than `CHECKPOINT_VERSION` cannot be read: the job begins again.

    Attributes:
        schema_version: the lowest version that a reader needs.
        segment: the segment that is being generated.
        stage: its current stage.
        step: number of steps of the stage that are done.
        fraction: the share of the whole job that is done when it resumes here, in [0, 1].
        state: the file of the pipeline's state.
        segment_files: the encoded video of each segment before this one, in order.
        weights: fingerprints of the weights that computed it, as in `Capability.weights_for`.
        dtype: the data type in which it was computed, as in `Capability.dtype`.
        digests: the SHA-256 of each file.
    """

    schema_version: int = 1
    segment: int
    stage: Literal["denoise", "refine"]
    step: int
    fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    state: str
    segment_files: tuple[str, ...] = ()
    timings_s: Timings = Field(default_factory=dict)
    weights: dict[str, str] | None = None
    dtype: str | None = None
    digests: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.schema_version > CHECKPOINT_VERSION:
            raise ValueError(f"version {self.schema_version} is later than {CHECKPOINT_VERSION}")
        return self

    @model_validator(mode="after")
    def _check_segment_files(self) -> Self:
        if len(self.segment_files) != self.segment:
            message = f"segment {self.segment} cannot resume from {len(self.segment_files)} segment files"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Refuse names that lead out of the job's folder, or that the storage does not take."""
        for name in self.files:
            if "/" in checked(name):
                raise ValueError(f"not the name of a file: {name!r}")
        if unknown := self.digests.keys() - set(self.files):
            raise ValueError(f"digests of files that do not belong to the checkpoint: {sorted(unknown)}")
        return self

    @property
    def position(self) -> tuple[int, bool, int]:
        """Return a key that is greater for later checkpoints of the same job."""
        return self.segment, self.stage == "refine", self.step

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of all files that are needed to resume."""
        return (self.state, *self.segment_files)


class VideoFile(_Message):
    """Describe a finished video. Files are named relative to the job's folder.

    Attributes:
        size_bytes: size of the video file; `sha256` is its hash.
        dtype: the data type in which the group computed, as in `Capability.dtype`.
        model: the name of the model, as in `Capability.model`.
        weights: the fingerprints of its weights, as in `Capability.weights_for`.
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
    model: str | None = None
    weights: dict[str, str] = Field(default_factory=dict)


class RunJob(_Message):
    """Run this order.

    Attributes:
        folder: the job's folder, in which rank 0 reads inputs and writes files.
        inputs: the file in the folder for each input of the order, such as `image`.
        resume: the checkpoint to resume from, whose files are in the folder.
        timings_s: the times of earlier attempts.
        log_context: fields that every log line about the job carries, such as `job_id` and W3C's
            `traceparent`.
        deadline_at: when the video is wanted.
        priority: that of the job.
        width: the number of ranks that run it, in a world where that changes; every rank of the block gets
            the message. None for all ranks of the group, which get it from rank 0.
    """

    type: Literal["run_job"] = "run_job"
    job_id: str
    order: Order
    folder: Path
    inputs: dict[str, str] = Field(default_factory=dict)
    resume: Checkpoint | None = None
    timings_s: Timings = Field(default_factory=dict)
    log_context: dict[str, str] = Field(default_factory=dict)
    deadline_at: datetime | None = None
    priority: Priority = "normal"
    width: int | None = None


class StopJob(_Message):
    """Stop this job at the next event; save a checkpoint first if the reason is in `SAVE_BEFORE_STOP`.

    A job stops for `resize` only where nothing has to be done again, or with the step cache one step: after
    a step or a segment.
    """

    type: Literal["stop_job"] = "stop_job"
    job_id: str
    reason: StopReason


class Ready(_Message):
    """Report that every rank has loaded the model and waits for jobs.

    `pids` are the processes of the ranks on the supervisor's machine, `widths` the numbers of ranks that can
    run a job together.
    """

    type: Literal["ready"] = "ready"
    protocol_version: int = PROTOCOL_VERSION
    capability: Capability
    pids: tuple[int, ...]
    widths: tuple[int, ...] = ()


class RankConnected(_Message):
    """Name the rank of a connection: the first message of each rank in a world where all have one."""

    type: Literal["rank_connected"] = "rank_connected"
    rank: int


class JobStarted(_Message):
    """Report that all ranks have received the order and rank 0 has read its inputs.

    `width` is that of the order.
    """

    type: Literal["job_started"] = "job_started"
    job_id: str
    width: int | None = None


class JobPaused(_Message):
    """Report that the job has stopped and waits for other ranks. A world sends it to the job's supervisor."""

    type: Literal["job_paused"] = "job_paused"
    job_id: str
    width: Literal[0] = 0


class ProgressReport(_Message):
    """Report progress. Sent after every event of the pipeline."""

    type: Literal["progress_report"] = "progress_report"
    job_id: str
    progress: Progress
    timings_s: Timings


class StageDone(_Message):
    """Report work that rank 0 did for the job beside the model, for the job's timeline."""

    type: Literal["stage_done"] = "stage_done"
    job_id: str
    stage: Interval


class LastDecode(_Message):
    """Report that only decoding remains: the GPUs will soon be free for the next job."""

    type: Literal["last_decode"] = "last_decode"
    job_id: str


class CheckpointSaved(_Message):
    """Report a checkpoint whose files are complete in the job's folder."""

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    job_id: str
    checkpoint: Checkpoint


class GpusReleased(_Message):
    """Report that the GPUs are free for the next job. Rank 0 still finishes this job's video."""

    type: Literal["gpus_released"] = "gpus_released"
    job_id: str


class VideoDone(_Message):
    """Report that the video is complete. The job's last message."""

    type: Literal["video_done"] = "video_done"
    job_id: str
    video: VideoFile
    timings_s: Timings


class JobStopped(_Message):
    """Report that the job stopped as requested. The GPUs are free. The job's last message."""

    type: Literal["job_stopped"] = "job_stopped"
    job_id: str
    reason: StopReason


class JobFailed(_Message):
    """Report that the job failed and the group can run the next one. The job's last message."""

    type: Literal["job_failed"] = "job_failed"
    job_id: str
    error: JobError
    timings_s: Timings


class GroupFailed(_Message):
    """Report that the group cannot continue: its processes are about to end."""

    type: Literal["group_failed"] = "group_failed"
    message: str


JobMessage = (
    JobStarted
    | JobPaused
    | ProgressReport
    | StageDone
    | LastDecode
    | CheckpointSaved
    | GpusReleased
    | VideoDone
    | JobStopped
    | JobFailed
)
"""The messages of rank 0 about one job."""

Message = RunJob | StopJob | RankConnected | Ready | JobMessage | GroupFailed

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def parse(line: bytes) -> Message:
    """Return the message of a JSON line. Raises pydantic's ValidationError."""
    return _MESSAGE.validate_json(line)
