"""A job as it is shown to clients. It knows records and links, and nothing of how they are stored."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from jobs.order import InputFile, Order, Priority, Quality, Refinement, Task
from jobs.record import Job, JobError, Progress, Result, Status, WebhookEvent


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputView(_View):
    """An image or a clip as it was taken in."""

    media_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int

    @classmethod
    def of(cls, file: InputFile | None) -> Self | None:
        """The file without the place where it lies."""
        return cls(**file.model_dump(exclude={"key"})) if file else None


class RequestView(_View):
    """The request with everything settled, under the names that `POST /generate` takes."""

    prompt: str | None = Field(description="When there is one for all segments.")
    prompts: list[str] | None = Field(description="When there is one for each segment.")
    negative_prompt: str | None = Field(description="null where there is no guidance.")
    image: InputView | None
    video: InputView | None
    condition_video: InputView | None
    height: int
    width: int
    num_frames: int
    num_segments: int
    num_condition_frames: int
    num_inference_steps: int
    guidance_scale: float
    distilled: bool
    quality: Quality
    condition_cache: bool
    enhance_hf: bool
    refine: bool
    refinement: Refinement | None = Field(description="The second stage, settled.")
    fps: int = Field(description="Of the video before it is refined.")
    seed: int
    priority: Priority
    webhook_url: str | None
    webhook_events: list[WebhookEvent] | None = Field(description="null where there is no `webhook_url`.")

    @classmethod
    def of(cls, job: Job) -> Self:
        """What was ordered with this job."""
        order = job.order
        same = {name: getattr(order, name) for name in cls.model_fields.keys() & Order.model_fields.keys()}
        files = {name: InputView.of(same[name]) for name in ("image", "video", "condition_video")}
        single = order.prompts[0] if len(order.prompts) == 1 else None
        return cls(
            **same | files | {"prompts": None if single is not None else list(order.prompts)},
            prompt=single,
            quality=order.quality,
            refine=order.refinement is not None and order.task != "refine",
            priority=job.priority,
            webhook_url=job.webhook_url,
            webhook_events=list(job.webhook_events) if job.webhook_url else None,
        )


class ResultView(_View):
    """The finished video."""

    video_url: str
    thumbnail_url: str
    width: int
    height: int
    num_frames: int
    fps: int
    duration_s: float
    size_bytes: int
    sha256: str
    seed: int
    dtype: str | None = Field(description="What matrices were multiplied in: float8_e4m3fn is less exact.")

    @classmethod
    def of(cls, result: Result, job_url: str) -> Self:
        """The result with links in place of storage keys."""
        return cls(
            video_url=f"{job_url}/video",
            thumbnail_url=f"{job_url}/thumbnail",
            **result.model_dump(exclude={"video_key", "thumbnail_key"}),
        )


class JobView(_View):
    """A job. Times are RFC 3339 in UTC."""

    model_config = ConfigDict(extra="forbid", title="Job")

    id: str
    status: Status
    task: Task
    request: RequestView
    progress: Progress | None
    queue_position: int | None = Field(description="1 for the job that is next; null unless queued.")
    attempt: int = Field(description="How often a worker began it.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: JobError | None
    result: ResultView | None
    timings_s: dict[str, float] = Field(description="Seconds by phase.")
    metadata: dict[str, str]
    expires_at: datetime | None = Field(description="When record and files are removed.")

    @classmethod
    def of(cls, job: Job, queue_position: int | None, public_url: str = "") -> Self:
        """The record as it stands, with links that begin with `public_url`."""
        same = {name: getattr(job, name) for name in cls.model_fields.keys() & Job.model_fields.keys()}
        result = job.result and ResultView.of(job.result, f"{public_url.rstrip('/')}/jobs/{job.id}")
        return cls(
            **same | {"result": result},
            task=job.order.task,
            request=RequestView.of(job),
            queue_position=queue_position,
        )


class JobPage(_View):
    """Jobs, the newest first."""

    jobs: list[JobView]
    next: str | None = Field(description="Pass it as `after` for the next page; null on the last.")
