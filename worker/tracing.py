"""What a supervisor tells of a job to those who trace: its wait in the queue, its run, each phase of that.

A `worker.held.Held` carries the spans of its job. They stand below the request that ordered it, whose place
in the trace came through the queue. Where nobody traces, nothing happens here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jobs.record import Progress, Status
from jobs.transitions import Claim

if TYPE_CHECKING:
    from jobs.otel import Span, Tracing, Values


class JobSpans(Protocol):
    """The spans of one job in this supervisor's hands."""

    def enter(self, progress: Progress) -> None:
        """The job is there now: where that is another phase or segment, a span ends and another begins."""

    def end(self, status: Status | None) -> None:
        """It is out of hand in this state, None if that is not known. Only the first time counts."""


class Untraced:
    """Where nobody traces."""

    def enter(self, progress: Progress) -> None:
        """See `JobSpans`."""

    def end(self, status: Status | None) -> None:
        """See `JobSpans`."""


class TracedJob:
    """Where somebody does. The wait ends with the first claim, which later ones only begin again."""

    def __init__(self, claim: Claim, tracing: Tracing) -> None:
        job = claim.job
        self._tracing = tracing
        self._about: Values = {"longcat.job_id": job.id, "longcat.task": job.order.task}
        parent = job.traceparent
        if claim.attempt == 1:
            wait = tracing.begin("queue", parent, self._about, at=job.created_at)
            wait.end(at=job.started_at)
            parent = parent or wait.traceparent
        values = {**self._about, "longcat.attempt": claim.attempt, "longcat.group": job.group or ""}
        self._run: Span | None = tracing.begin("run", parent, values)
        self._below = self._run.traceparent
        self._place = ("load", 0)
        self._phase = self._begin()

    def enter(self, progress: Progress) -> None:
        """See `JobSpans`."""
        place = (progress.phase, progress.segment)
        if place != self._place and self._run:
            self._place = place
            self._phase.end()
            self._phase = self._begin()

    def end(self, status: Status | None) -> None:
        """See `JobSpans`."""
        if self._run is None:
            return
        failed = status == "failed"
        self._phase.end(failed=failed)
        self._run.note({"longcat.status": status or "lost"})
        self._run.end(failed=failed)
        self._run = None

    def _begin(self) -> Span:
        phase, segment = self._place
        return self._tracing.begin(phase, self._below, {**self._about, "longcat.segment": segment})


def spans_of(claim: Claim, tracing: Tracing | None) -> JobSpans:
    """The spans of a job that was just claimed."""
    return TracedJob(claim, tracing) if tracing else Untraced()
