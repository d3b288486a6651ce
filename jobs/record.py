"""Define a job as clients and workers see it: status, progress, result, error.

Redis holds one hash for each job, which only `jobs.store` changes. Other releases may have written it:
unknown fields are ignored, missing and unreadable ones get their defaults. A record without a readable id,
status, order or time of submission raises UnreadableRecord.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from jobs.errors import LongCatError, UnreadableRecord
from jobs.order import Order, Priority

Status = Literal["queued", "running", "uploading", "succeeded", "failed", "cancelled"]
WebhookEvent = Literal["started", "succeeded", "failed", "cancelled"]
Phase = Literal["load", "encode", "denoise", "refine", "decode", "upload"]

WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})

_JSON = {
    "order",
    "batch",
    "metadata",
    "progress",
    "error",
    "result",
    "timings_s",
    "webhook_events",
    "warnings",
}
"""The fields of a record that are JSON. Times are in ms (`created_ms` for `created_at`), all others text."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Stored):
    """The progress of a job.

    Attributes:
        fraction: the share of the whole job that is done, in [0, 1].
        eta_s: the time until the job ends, None if it is not known.
    """

    phase: Phase
    step: int = 0
    num_steps: int = 0
    segment: int = 0
    num_segments: int = 1
    fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    eta_s: float | None = None


class JobError(_Stored):
    """The error that a job failed with; `code` is one of `jobs.errors`."""

    code: str
    message: str
    retryable: bool = False

    @classmethod
    def of(cls, error: LongCatError) -> Self:
        """Return an error as it is stored."""
        return cls(code=error.code, message=error.message, retryable=error.retryable)


class Result(_Stored):
    """The finished video; keys are storage keys.

    Attributes:
        dtype: the data type of the matrix products, in the group that finished the video.
        model: the name of the model that this group has.
        weights: the fingerprint of each part of the checkpoint that the video depends on.
    """

    video_key: str
    thumbnail_key: str
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


class Batch(_Stored):
    """The jobs that one request for several videos created, in the order of their seeds."""

    id: str
    job_ids: tuple[str, ...]


class Job(_Stored):
    """The record of a job. Times are in UTC.

    Attributes:
        batch: the jobs that were requested together with this one, None if it was requested alone.
        deadline_at: when the video is wanted, None if that does not matter.
        attempt: the number of starts, without those that ended in a drain or a preemption.
        group: the group that runs the job, or ran it last.
        requirement: what a group needs to run the job (`jobs.requirement`); None if the record has lost it.
        gpu_ms: the GPU time of all attempts that have stopped, in ms.
        num_gpus: the number of GPUs that run the job, or ran it last.
        lost_gpu_ms: the part of `gpu_ms` whose work was lost: the job was requeued before it was saved.
        expected_gpu_ms: the GPU time that was expected at submission, in ms; 0 if nothing was known.
        gpu_hour_price: the operator's price for an hour of one GPU at submission, in `currency`.
        warnings: what the client should know about the video, for people.
        unread: fields of the stored record that could not be read, and have their defaults here.
        traceparent: the trace of the request that submitted the job, as in W3C Trace Context.
    """

    id: str
    status: Status
    order: Order
    priority: Priority = "normal"
    owner: str = ""
    batch: Batch | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = WEBHOOK_EVENTS
    progress: Progress | None = None
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    deadline_at: datetime | None = None
    cancel_requested: bool = False
    group: str | None = None
    requirement: str | None = None
    gpu_ms: int = Field(default=0, ge=0)
    num_gpus: int = Field(default=1, ge=0)
    lost_gpu_ms: int = Field(default=0, ge=0)
    expected_gpu_ms: int = Field(default=0, ge=0)
    gpu_hour_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    currency: str | None = None
    warnings: tuple[str, ...] = ()
    request_id: str | None = None
    traceparent: str | None = None
    error: JobError | None = None
    result: Result | None = None
    timings_s: dict[str, float] = Field(default_factory=dict)
    unread: tuple[str, ...] = Field(default=(), exclude=True)

    @classmethod
    def from_hash(cls, fields: Mapping[str, str]) -> Self:
        """Read the hash in Redis, without the fields that only the scripts use. Raises UnreadableRecord."""
        values = _decode(fields)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
        broken = {str(problem["loc"][0]) for problem in problems}
        readable = {name: value for name, value in values.items() if name not in broken}
        try:
            return cls.model_validate({**readable, "unread": sorted(broken)})
        except ValidationError as error:
            described = "; ".join(map(_describe, problems[:3]))
            raise UnreadableRecord(f"job {fields.get('id')}: cannot read {described}") from error

    @property
    def ended(self) -> bool:
        """Return whether the job is in a final state."""
        return self.status in ENDED

    @property
    def deadline_met(self) -> bool | None:
        """Return whether the video was ready in time; None without a deadline, and before it is decided."""
        if self.deadline_at is None or not self.ended or self.status == "cancelled":
            return None
        return (
            self.status == "succeeded"
            and self.finished_at is not None
            and self.finished_at <= self.deadline_at
        )


@dataclass(frozen=True)
class QueueEstimate:
    """The prospects of a queued job.

    The position holds as long as no other job is submitted and no limit on running jobs applies.

    Attributes:
        position: the position in the queue; 1 is next.
        eta_s: the time until the job will have ended, None while no job has ever succeeded.
        run_s: the part of it in which the job runs.
    """

    position: int
    eta_s: float | None
    run_s: float | None = None


class JobEvent(_Stored):
    """A change of a job. Reading of a stream continues after `id`."""

    id: str
    status: Status
    progress: Progress | None = None

    @classmethod
    def from_entry(cls, entry_id: bytes, entry: Mapping[bytes, bytes]) -> Self:
        """Read an entry of a stream. Raises UnreadableRecord."""
        progress = entry.get(b"progress")
        try:
            return cls(
                id=entry_id.decode(),
                status=entry[b"status"].decode(),
                progress=Progress.model_validate_json(progress) if progress else None,
            )
        except ValidationError as error:
            raise UnreadableRecord(f"event {entry_id.decode()}") from error


_UNREADABLE = object()
"""The value of a field that cannot be decoded: no field accepts it."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"


def _decode(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a record in the form that `Job` takes."""
    values: dict[str, Any] = {}
    for name in Job.model_fields:
        is_time = name.endswith("_at")
        stored = fields.get(f"{name.removesuffix('_at')}_ms" if is_time else name)
        if stored is not None:
            values[name] = _time(stored) if is_time else _json(stored) if name in _JSON else stored
    return values


def _json(document: str) -> object:
    """Return the value of a JSON text. Unpaired surrogates, which UTF-8 cannot encode, are replaced.

    Release 0.3.0 took them into metadata.
    """
    try:
        value = json.loads(document)
    except ValueError:
        return _UNREADABLE
    if "\\u" in document:
        value = json.loads(_SURROGATE.sub(_REPLACEMENT, json.dumps(value, ensure_ascii=False)))
    return value


def _time(milliseconds: str) -> object:
    try:
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    except (ValueError, OverflowError):
        return _UNREADABLE


def _describe(problem: ErrorDetails) -> str:
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
