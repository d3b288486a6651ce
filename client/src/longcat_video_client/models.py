"""Define what the service returns: jobs, pages of jobs, and its capability.

Fields that this release does not know are kept (`model_extra`), and those that are missing have defaults, so
that the client works with newer and older services. Statuses, tasks and phases are plain strings, because a
newer service may have more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from longcat_video_client.errors import JobCancelled, JobFailed, JobNotReady

FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})
_REPLACED = {  # options of a preset that a change of another one replaces
    "prompt": ("prompts",),
    "prompts": ("prompt",),
    "resolution": ("height", "width"),
    "height": ("resolution",),
    "width": ("resolution",),
}


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Progress(_Reply):
    """The progress of a job. `fraction` is the share of the whole job that is done, in [0, 1]."""

    phase: str
    step: int = 0
    num_steps: int = 0
    segment: int = 0
    num_segments: int = 1
    fraction: float = 0.0
    eta_s: float | None = None


class JobError(_Reply):
    """The reason why a job failed. `code` is stable, `message` is for people."""

    code: str
    message: str = ""
    retryable: bool = False


class Result(_Reply):
    """A finished video. `sha256` is the digest of the file."""

    video_url: str
    thumbnail_url: str | None = None
    width: int
    height: int
    num_frames: int
    fps: int
    duration_s: float
    size_bytes: int
    sha256: str
    seed: int
    dtype: str | None = None
    model: str | None = None
    weights: dict[str, str] = Field(default_factory=dict)


class InputFile(_Reply):
    """An image or a clip that came with the request. `job_id` is the job that has it.

    If it is the video of another job, or a frame of one, `source_job_id` is that job, and `source_frame` the
    frame, counted from 0.
    """

    job_id: str | None = None
    media_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int = 1
    source_job_id: str | None = None
    source_frame: int | None = None


class Refinement(_Reply):
    """The second stage of a video, with higher resolution."""

    height: int
    width: int
    num_inference_steps: int
    t_thresh: float
    spatial_only: bool = False
    num_held: int = 0


class ResolvedRequest(_Reply):
    """The request of a job with all defaults filled in. The same values give the same video."""

    task: str | None = None
    prompt: str | None = None
    prompts: tuple[str, ...] | None = None
    negative_prompt: str | None = None
    model: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_segments: int | None = None
    num_condition_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    distilled: bool | None = None
    quality: str | None = None
    refine: bool | None = None
    refinement: Refinement | None = None
    t_thresh: float | None = None
    spatial_refine_only: bool | None = None
    condition_cache: bool | None = None
    enhance_hf: bool | None = None
    fps: int | None = None
    seed: int | None = None
    image: InputFile | None = None
    video: InputFile | None = None
    condition_video: InputFile | None = None
    priority: str | None = None
    deadline_s: float | None = None
    webhook_url: str | None = None
    webhook_events: tuple[str, ...] | None = None


class Batch(_Reply):
    """The jobs of one request for several videos, in the order of their seeds."""

    id: str
    job_ids: tuple[str, ...]


class Cost(_Reply):
    """The cost of a job. `predicted` is that expected at submission, None if nothing was known."""

    predicted: float | None = None
    actual: float = 0.0
    currency: str = ""


class Job(_Reply):
    """A job.

    Attributes:
        owner: the owner of the API key that requested it; empty without keys.
        batch: the jobs that were requested together with this one, None if it was requested alone.
        status: `queued`, `running`, `uploading`, `succeeded`, `failed` or `cancelled`.
        queue_position: 1 for the job that is next, None unless the job is queued.
        waiting_for: why no GPUs can start the job now, if it is queued.
        warnings: what is special about the video.
        attempt: how many times the job was started.
        timings_s: seconds by phase.
        deadline_at: when the video is wanted, None if there is no deadline.
        deadline_met: whether it was ready then, None before the end.
        predicted_finish_at: when the video is expected, None if that is not known, and at the end.
        gpu_s: seconds of GPU time of all attempts that have stopped.
        gpu_phases_s: the part of it that each phase took, at the end.
        lost_gpu_s: the part of it whose work was lost, because the job was requeued before it was saved.
        cost: what the job costs, None if the operator has set no price.
        expires_at: when the job and its files are deleted.
    """

    id: str
    owner: str = ""
    status: str
    task: str | None = None
    request: ResolvedRequest = ResolvedRequest()
    progress: Progress | None = None
    queue_position: int | None = None
    waiting_for: str | None = None
    batch: Batch | None = None
    warnings: tuple[str, ...] = ()
    attempt: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    deadline_met: bool | None = None
    predicted_finish_at: datetime | None = None
    error: JobError | None = None
    result: Result | None = None
    timings_s: dict[str, float] = Field(default_factory=dict)
    gpu_s: float | None = None
    gpu_phases_s: dict[str, float] = Field(default_factory=dict)
    lost_gpu_s: float | None = None
    cost: Cost | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    expires_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Return whether the status is final, even if this release does not know the status."""
        return self.status in FINAL_STATUSES or self.finished_at is not None

    @property
    def all_ids(self) -> tuple[str, ...]:
        """Return the ids of all jobs that were requested together with this one, or its own."""
        return self.batch.job_ids if self.batch else (self.id,)

    def result_or_raise(self) -> Result:
        """Return the result of a job that succeeded.

        Raises:
            JobFailed: the job failed.
            JobCancelled: the job was cancelled.
            JobNotReady: the job has no result, or none yet.
        """
        if self.result is not None:
            return self.result
        if self.status == "failed":
            error = self.error or JobError(code="unknown")
            raise JobFailed(self.id, error.code, error.message, retryable=error.retryable)
        if self.status == "cancelled":
            raise JobCancelled(self.id)
        raise JobNotReady(self.id, self.status)


class BatchJobs(_Reply):
    """The jobs of a batch that still exist, in the order of their seeds."""

    jobs: tuple[Job, ...]


class JobPage(_Reply):
    """Jobs, the newest first.

    Attributes:
        next: the `after` of the page of older jobs, None on the last page.
        previous: the `before` of the page of newer jobs, None on the first page.
    """

    jobs: tuple[Job, ...]
    next: str | None = None
    previous: str | None = None


class DayUsage(_Reply):
    """The GPU time of the jobs of an owner that ended on a day in UTC, in seconds.

    Attributes:
        lost_gpu_s: the part of it whose work was lost, because jobs were requeued before it was saved.
        costs: the cost of these jobs by currency, if the operator has set a price.
    """

    day: date
    owner: str
    gpu_s: float
    lost_gpu_s: float = 0.0
    costs: dict[str, float] = Field(default_factory=dict)


class Usage(_Reply):
    """The GPU time of the last days, the latest first."""

    usage: tuple[DayUsage, ...] = ()


class Preset(_Reply):
    """Options of requests under a name.

    Attributes:
        options: fields of a request, as `Options` and `prompt` or `prompts`.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    def with_changes(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with changes, as `extra` of a request; without those that a change replaces."""
        replaced = {other for name in changes for other in _REPLACED.get(name, ())}
        kept = {name: value for name, value in self.options.items() if name not in replaced}
        return {**kept, **changes}


class Presets(_Reply):
    """All presets of an owner."""

    presets: tuple[Preset, ...] = ()


class _Capability(_Reply):
    schema_version: int | None = None
    model: str
    tasks: tuple[str, ...] = ()
    limits: dict[str, Any] = Field(default_factory=dict)
    known_words: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    context_parallel: int | None = None
    device: str | None = None
    dtype: str | None = None
    weights: dict[str, str] = Field(default_factory=dict)
    gpu: str | None = None
    gpu_memory_gib: int | None = None
    order_versions: tuple[int, ...] = ()
    memory: dict[str, Any] | None = None


class Pool(_Capability):
    """Groups of GPUs that can make the same videos. `away_s` is the time since the last one went."""

    name: str
    num_groups: int = 0
    away_s: float = 0.0
    queued_jobs: int = 0


class Capability(_Capability):
    """The capability of the service: tasks, LoRAs, and the limits and defaults of its most capable pool."""

    qualities: tuple[str, ...] = ("exact",)
    default_t_thresh: float | None = None
    max_num_videos: int | None = None
    pools: tuple[Pool, ...] = ()
