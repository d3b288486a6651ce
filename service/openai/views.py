"""Define how OpenAI's videos API shows a job."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from jobs.capability import Capability
from jobs.record import Job, Status
from service.openai.lengths import seconds_text

VideoStatus = Literal["queued", "in_progress", "completed", "failed"]

_STATUS: dict[Status, VideoStatus] = {
    "queued": "queued",
    "running": "in_progress",
    "uploading": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
_SOON_MS, _LATE_MS = 500, 10_000
_SHARE_OF_ETA = 4  # polling after a quarter of the remaining time adds little delay


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class VideoError(_View):
    """Why there is no video; `code` is `cancelled` or an error code of a job."""

    code: str
    message: str

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return the error of a job that ended without a video."""
        if job.status == "cancelled":
            return cls(code="cancelled", message="the job was cancelled")
        return cls(code=job.error.code, message=job.error.message) if job.error else None


class Video(_View):
    """A job. Times are seconds since 1970; the job's own form is at `/jobs/{id}`."""

    id: str
    object: Literal["video"] = "video"
    model: str = Field(description="Name of the model that is used.")
    status: VideoStatus = Field(description="A cancelled job is `failed`, with the code `cancelled`.")
    progress: int = Field(ge=0, le=100, description="Whole percent.")
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None
    prompt: str
    remixed_from_video_id: None = None
    seconds: str = Field(description="Length of the generated video.")
    size: str = Field(description="Width × height of the generated video.")

    @classmethod
    def of(cls, job: Job, capability: Capability) -> Self:
        """Return the view of a job."""
        plan = job.order.plan
        return cls(
            id=job.id,
            model=(job.result and job.result.model) or job.order.model or capability.model,
            status=_STATUS[job.status],
            progress=_percent(job),
            created_at=round(job.created_at.timestamp()),
            completed_at=_seconds(job.finished_at) if job.status == "succeeded" else None,
            expires_at=_seconds(job.expires_at),
            error=VideoError.of(job),
            prompt="\n".join(job.order.prompts),
            seconds=seconds_text(plan.total_frames, capability.model_limits),
            size=f"{plan.output_size.width}x{plan.output_size.height}",
        )


class VideoPage(_View):
    """Videos; pass `last_id` as `after` for the next page."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, videos: list[Video], *, has_more: bool) -> Self:
        """Return a page of these videos."""
        first_id, last_id = (videos[0].id, videos[-1].id) if videos else (None, None)
        return cls(data=videos, first_id=first_id, last_id=last_id, has_more=has_more)


class VideoDeleted(_View):
    """Confirms that a video is removed, or will be when its job has stopped."""

    id: str
    deleted: Literal[True] = True
    object: Literal["video.deleted"] = "video.deleted"


def poll_after_ms(job: Job, position: int | None) -> int | None:
    """Return how long to wait before polling again; None for a job that has ended."""
    if job.ended:
        return None
    eta_s = job.progress.eta_s if job.progress else None
    wait_s = (position or 1) if eta_s is None else eta_s / _SHARE_OF_ETA
    return min(max(round(wait_s * 1000), _SOON_MS), _LATE_MS)


def _percent(job: Job) -> int:
    if job.status == "succeeded":
        return 100
    return int(100 * job.progress.fraction) if job.progress else 0


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp())
