"""Send the stages of a job as OpenTelemetry spans, where a collector is configured.

The spans are children of the request that submitted the job; its `traceparent` came through the queue.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from jobs.record import Status
from jobs.store.holder import Lease
from worker.telemetry import Stage

if TYPE_CHECKING:
    from jobs.otel import Tracing, Values


class JobSpans(Protocol):
    """Receive the stages of one job."""

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """Add a stage that ended; `failed` if the job failed in it."""

    def finish(self, status: Status | None) -> None:
        """End the span of the job with its status, None if that is not known."""


class NoSpans:
    """Ignore all stages, where no collector is configured."""

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """Ignore the stage."""

    def finish(self, status: Status | None) -> None:
        """Ignore the status."""


class TracedJob:
    """Send the stages of one job. The first attempt also has a span for the wait in the queue."""

    def __init__(self, lease: Lease, tracing: Tracing) -> None:
        job = lease.job
        self._tracing = tracing
        self._attributes: Values = {"longcat.job_id": job.id, "longcat.task": job.order.plan.task}
        parent = job.traceparent
        if lease.attempt == 1:
            queued = tracing.begin("queue", parent, self._attributes, at=job.created_at)
            queued.end(at=job.started_at)
            parent = parent or queued.traceparent
        attributes = {
            **self._attributes,
            "longcat.attempt": lease.attempt,
            "longcat.group": job.group or "",
        }
        self._run = tracing.begin("run", parent, attributes)

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """Send a span for this stage."""
        attributes = {**self._attributes, "longcat.lane": stage.lane, "longcat.segment": stage.segment}
        began, ended = (datetime.fromtimestamp(at_s, UTC) for at_s in (stage.began_s, stage.ended_s))
        span = self._tracing.begin(stage.name, self._run.traceparent, attributes, at=began)
        span.end(failed=failed, at=ended)

    def finish(self, status: Status | None) -> None:
        """End the span of the run."""
        self._run.note({"longcat.status": status or "lease_lost"})
        self._run.end(failed=status == "failed")


def spans_of(lease: Lease, tracing: Tracing | None) -> JobSpans:
    """Return the spans of a job that was just claimed."""
    return TracedJob(lease, tracing) if tracing else NoSpans()
