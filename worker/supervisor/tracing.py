"""Record the intervals of a job as OpenTelemetry spans, where tracing is configured.

The spans are children of the request that submitted the job; its `traceparent` came through the queue.
"""

from __future__ import annotations

from typing import Protocol

from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace import StatusCode, TracerProvider, set_span_in_context

from jobs.record import Status
from jobs.store.holder import Lease
from jobs.tracing import TRACER, context_of, nanoseconds
from worker.telemetry import Interval


class JobSpans(Protocol):
    """Receive the intervals of one job."""

    def add(self, interval: Interval, *, failed: bool = False) -> None:
        """Add an interval that ended; `failed` if the job failed in it."""

    def finish(self, status: Status | None) -> None:
        """End the span of the job with its status, None if that is not known."""


class NoSpans:
    """Ignore all intervals: those of a job that is not traced, such as one that only has to be uploaded."""

    def add(self, interval: Interval, *, failed: bool = False) -> None:
        """Ignore the interval."""

    def finish(self, status: Status | None) -> None:
        """Ignore the status."""


class TracedJob:
    """Record the intervals of one claim of a job. The first one also has a span for the wait in the queue."""

    def __init__(self, lease: Lease, tracing: TracerProvider) -> None:
        job = lease.job
        self._tracer = tracing.get_tracer(TRACER)
        self._attributes: dict[str, str | int] = {
            "longcat.job_id": job.id,
            "longcat.task": job.order.plan.task,
        }
        parent = context_of(job.traceparent)
        if lease.fence == 1:
            queued = self._tracer.start_span(
                "queue", parent, attributes=self._attributes, start_time=nanoseconds(job.created_at)
            )
            queued.end(nanoseconds(job.started_at))
            parent = parent or set_span_in_context(queued)
        attributes: dict[str, str | int] = {
            **self._attributes,
            "longcat.attempt": lease.fence,
            "longcat.group": job.group or "",
        }
        self._run = self._tracer.start_span("run", parent, attributes=attributes)

    def add(self, interval: Interval, *, failed: bool = False) -> None:
        """Record an interval that ended; `failed` if the job failed in it."""
        attributes = {**self._attributes, "longcat.lane": interval.lane, "longcat.segment": interval.segment}
        span = self._tracer.start_span(
            interval.name,
            set_span_in_context(self._run),
            attributes=attributes,
            start_time=round(interval.began_s * 1e9),
        )
        if failed:
            span.set_status(SpanStatus(StatusCode.ERROR))
        span.end(round(interval.ended_s * 1e9))

    def finish(self, status: Status | None) -> None:
        """End the span of the run with the job's status; one that is not known counts as a lost lease."""
        self._run.set_attribute("longcat.status", status or "lease_lost")
        if status == "failed":
            self._run.set_status(SpanStatus(StatusCode.ERROR))
        self._run.end()


def spans_of(lease: Lease, tracing: TracerProvider) -> JobSpans:
    """Return the spans of a job that was just claimed."""
    return TracedJob(lease, tracing)
