"""Define how a job is shown to clients: without storage keys, with links."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from jobs.order import InputFile, Priority
from jobs.record import Batch, Job, JobError, Progress, Result, Status, WebhookEvent
from model.spec.params import Quality, Task
from model.spec.plan import Plan


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputView(_View):
    """An image or a clip that came with the request. `POST /generate` takes it as it is."""

    job_id: str = Field(description="The job that has this input.")
    media_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int
    source_job_id: str | None = Field(description="The job whose video it is, or is from; null for others.")
    source_frame: int | None = Field(description="For an image: the frame of that video, counted from 0.")

    @classmethod
    def of(cls, job: Job, field: str) -> Self | None:
        """Return the view of a job's input file, without its storage key; None if there is none."""
        file: InputFile | None = getattr(job.order, field)
        return None if file is None else cls(job_id=job.id, **file.model_dump(exclude={"key"}))


class RequestView(Plan):
    """The request with every option resolved, under the names that `POST /generate` takes.

    It can be sent to `POST /generate` as it is.
    """

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)

    num_condition_frames: int = Field(
        description="Frames taken over by a segment from what it continues, or by `refine` "
        "from its `condition_video`."
    )
    t_thresh: float | None = Field(description="Noise level at which refinement begins; null without it.")
    spatial_refine_only: bool
    step_cache: float | None = Field(None, exclude=True)  # clients know it as `quality`
    quality: Quality
    refine: bool
    model: str | None = Field(description="Name of the model; null for any.")
    prompt: str | None = Field(description="null if each segment has its own.")
    prompts: list[str] | None = Field(description="null if there is one for all segments.")
    negative_prompt: str | None = Field(description="null if there is no guidance.")
    image: InputView | None
    video: InputView | None
    condition_video: InputView | None
    seed: int
    priority: Priority
    deadline_s: float | None = Field(description="null if there is no deadline.")
    webhook_url: str | None
    webhook_events: list[WebhookEvent] | None = Field(description="null if there is no `webhook_url`.")

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return what was requested with this job."""
        order, plan = job.order, job.order.plan
        refinement = plan.refinement
        has_one_prompt = len(order.prompts) == 1
        shown = dict(plan)
        if plan.task == "refine" and refinement and order.condition_video:
            shown["num_condition_frames"] = refinement.num_held
        return cls(
            **shown,
            t_thresh=refinement and refinement.t_thresh,
            spatial_refine_only=refinement is not None and refinement.spatial_only,
            quality="exact" if plan.step_cache is None else "balanced",
            refine=refinement is not None and plan.task != "refine",
            model=order.model,
            prompt=order.prompts[0] if has_one_prompt else None,
            prompts=None if has_one_prompt else list(order.prompts),
            negative_prompt=order.negative_prompt,
            image=InputView.of(job, "image"),
            video=InputView.of(job, "video"),
            condition_video=InputView.of(job, "condition_video"),
            seed=order.seed,
            priority=job.priority,
            deadline_s=job.deadline_at and (job.deadline_at - job.created_at).total_seconds(),
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
    dtype: str | None = Field(
        description="Type in which matrices were multiplied: float8_e4m3fn is less exact."
    )
    model: str | None = Field(description="Name of the model that made the video.")
    weights: dict[str, str] = Field(description="Fingerprint of each part of the model that was used.")

    @classmethod
    def of(cls, result: Result, job_url: str) -> Self:
        """Return the result with links in place of storage keys."""
        return cls(
            video_url=f"{job_url}/video",
            thumbnail_url=f"{job_url}/thumbnail",
            **result.model_dump(exclude={"video_key", "thumbnail_key"}),
        )


class CostView(_View):
    """The cost of a job at the price that held when it was submitted."""

    predicted: float | None = Field(description="As expected at submission; null if nothing was known.")
    actual: float = Field(description="Of all attempts that have stopped.")
    currency: str

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return the cost of a job, None if it has no price."""
        price, currency = job.gpu_hour_price, job.currency
        if price is None or currency is None:
            return None
        predicted = _cost(job.expected_gpu_ms, price) if job.expected_gpu_ms else None
        return cls(predicted=predicted, actual=_cost(job.gpu_ms, price), currency=currency)


class JobView(_View):
    """A job. Times are RFC 3339 in UTC."""

    model_config = ConfigDict(extra="forbid", title="Job")

    id: str
    owner: str = Field(description="The owner of the API key that requested it; empty without keys.")
    status: Status
    task: Task
    request: RequestView
    progress: Progress | None
    queue_position: int | None = Field(description="1 for the next job; null unless queued.")
    waiting_for: str | None = Field(description="Why no group can start the job now, if it is queued.")
    batch: Batch | None = Field(
        description="The jobs of one request for several videos, in the order of their seeds; null for one "
        "video."
    )
    warnings: list[str] = Field(description="What is special about the video.")
    attempt: int = Field(description="How many times a worker started it.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None = Field(description="When the video is wanted.")
    deadline_met: bool | None = Field(description="Whether it was ready then; null before the end.")
    predicted_finish_at: datetime | None = Field(
        description="When the video is expected; null if that is not known, and at the end."
    )
    error: JobError | None
    result: ResultView | None
    timings_s: dict[str, float] = Field(description="Seconds by phase.")
    gpu_s: float = Field(description="Seconds of GPU time of all attempts that have stopped.")
    gpu_phases_s: dict[str, float] = Field(description="The part of it that each phase took, at the end.")
    lost_gpu_s: float = Field(
        description="The part of it whose work was lost: the job was requeued before it was saved."
    )
    cost: CostView | None = Field(description="null if the operator has set no price.")
    metadata: dict[str, str]
    expires_at: datetime | None = Field(description="When record and files are removed.")

    @classmethod
    def of(
        cls,
        job: Job,
        queue_position: int | None,
        public_url: str = "",
        waiting_for: str | None = None,
        predicted_finish_at: datetime | None = None,
    ) -> Self:
        """Return the view of a job, with links that begin with `public_url`."""
        shared = {name: getattr(job, name) for name in cls.model_fields.keys() & Job.model_fields.keys()}
        result = job.result and ResultView.of(job.result, f"{public_url.rstrip('/')}/jobs/{job.id}")
        return cls(
            **shared | {"result": result},
            task=job.order.plan.task,
            request=RequestView.of(job),
            gpu_s=job.gpu_ms / 1000,
            gpu_phases_s=_gpu_phases_s(job),
            lost_gpu_s=job.lost_gpu_ms / 1000,
            cost=CostView.of(job),
            queue_position=queue_position,
            waiting_for=waiting_for,
            deadline_met=job.deadline_met,
            predicted_finish_at=predicted_finish_at,
        )


class BatchView(_View):
    """The jobs of a batch that still exist, in the order of their seeds."""

    jobs: list[JobView]


class JobPage(_View):
    """Jobs, the newest first."""

    jobs: list[JobView]
    next: str | None = Field(description="Pass it as `after` to get the next page; null on the last page.")
    previous: str | None = Field(
        description="Pass it as `before` to get the page of newer jobs; null if there are none."
    )


_GPU_PHASES = ("encode", "denoise", "refine", "decode")
_MS_PER_HOUR = 3_600_000


def _cost(gpu_ms: int, price: float) -> float:
    return round(gpu_ms / _MS_PER_HOUR * price, 6)


def _gpu_phases_s(job: Job) -> dict[str, float]:
    """Return the GPU time of each phase: its time, times the GPUs that the job had last.

    The phases together never take more than the job, although it may have had fewer GPUs before. The
    rest of its GPU time is lost work, and time in which the job had the GPUs and did not use them.
    """
    num_gpus = max(1, job.num_gpus)
    spent_s = {name: job.timings_s[name] * num_gpus for name in _GPU_PHASES if name in job.timings_s}
    scale = min(1.0, job.gpu_ms / 1000 / max(sum(spent_s.values()), 1e-9))
    return {name: round(seconds * scale, 3) for name, seconds in spent_s.items()}
