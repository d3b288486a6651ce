"""A job as everybody sees it: states, progress, result, error. Redis holds it as one hash for each job.

`jobs.store.job_store` alone changes it; the service shows it as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import LongCatError
from jobs.order import Order, Priority

Status = Literal["queued", "running", "uploading", "succeeded", "failed", "cancelled"]
WebhookEvent = Literal["started", "succeeded", "failed", "cancelled"]
Phase = Literal["load", "encode", "denoise", "refine", "decode", "upload"]

WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})


_PLAIN = ("id", "status", "priority", "owner", "webhook_url", "attempt", "cancel_requested", "group")
_TRACE = ("request_id", "traceparent")
_JSON = ("order", "metadata", "progress", "error", "result", "timings_s", "webhook_events")
_TIMES = ("created", "started", "finished", "expires")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(_Frozen):
    """How far a job is: `fraction` of the whole job in [0, 1], `eta_s` seconds to its end if known."""

    phase: Phase
    step: int = 0
    num_steps: int = 0
    segment: int = 0
    num_segments: int = 1
    fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    eta_s: float | None = None


class JobError(_Frozen):
    """Why a job failed; `code` is one of `jobs.errors`."""

    code: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, error: LongCatError) -> Self:
        """The same as an error of ours says it."""
        return cls(code=error.code, message=error.message, retryable=error.retryable)


class Result(_Frozen):
    """The finished video, as stored: keys are storage keys, made into links when they are shown.

    `dtype` is what its matrices were multiplied in, by the group that finished it; None in older records.
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


class Job(_Frozen):
    """The whole record. Times are UTC; `attempt` counts the groups that began the job and did not drain."""

    id: str
    status: Status
    order: Order
    priority: Priority = "normal"
    owner: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = WEBHOOK_EVENTS
    progress: Progress | None = None
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    cancel_requested: bool = False
    group: str | None = None
    request_id: str | None = None
    traceparent: str | None = None
    error: JobError | None = None
    result: Result | None = None
    timings_s: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def from_hash(cls, fields: Mapping[str, str]) -> Self:
        """Read the hash in Redis: JSON where a field has parts, milliseconds where it is a time.

        Fields that only the transitions need (fence, lease, …) are left out.
        """
        known: dict[str, Any] = {name: fields[name] for name in (*_PLAIN, *_TRACE) if name in fields}
        known |= {name: json.loads(fields[name]) for name in _JSON if name in fields}
        known |= {f"{name}_at": _time(fields[f"{name}_ms"]) for name in _TIMES if f"{name}_ms" in fields}
        return cls.model_validate(known)

    @property
    def ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.status in ENDED


class QueueEstimate(_Frozen):
    """Where a queued job stands: 1 is next; `eta_s` until it will have ended, None while nobody can know.

    The place is true as long as nobody else comes and no limit on running jobs holds an owner back.
    """

    position: int
    eta_s: float | None


class Event(_Frozen):
    """A change of a job, as its stream in Redis tells it; `id` is what to continue after."""

    id: str
    status: Status
    progress: Progress | None = None

    @classmethod
    def from_entry(cls, entry_id: bytes, entry: Mapping[bytes, bytes]) -> Self:
        """Read an entry of the stream."""
        progress = entry.get(b"progress")
        return cls(
            id=entry_id.decode(),
            status=entry[b"status"].decode(),
            progress=Progress.model_validate_json(progress) if progress else None,
        )


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
