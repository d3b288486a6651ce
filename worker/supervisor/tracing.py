"""What a supervisor tells of a job to those who trace: its wait in the queue, its run, each stage of that.

`worker.stages` calls it. The spans stand below the request that ordered the job, whose place in the trace
came through the queue. Where nobody traces, nothing happens here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.record import Status
from jobs.store.holder import Lease
from worker.stages import JobSpans, Stage, Untold

if TYPE_CHECKING:
    from jobs.otel import Tracing, Values


class TracedJob:
    """Where somebody does. The wait ends with the first claim, which later ones only begin again."""

    def __init__(self, claim: Lease, tracing: Tracing) -> None:
        job = claim.job
        self._tracing = tracing
        self._about: Values = {"longcat.job_id": job.id, "longcat.task": job.order.plan.task}
        parent = job.traceparent
        if claim.attempt == 1:
            wait = tracing.begin("queue", parent, self._about, at=job.created_at)
            wait.end(at=job.started_at)
            parent = parent or wait.traceparent
        values = {**self._about, "longcat.attempt": claim.attempt, "longcat.group": job.group or ""}
        self._run = tracing.begin("run", parent, values)
        self._below = self._run.traceparent

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """See `JobSpans`."""
        values = {**self._about, "longcat.lane": stage.lane, "longcat.segment": stage.segment}
        span = self._tracing.begin(stage.name, self._below, values, at=_time(stage.began_s))
        span.end(failed=failed, at=_time(stage.ended_s))

    def end(self, status: Status | None) -> None:
        """See `JobSpans`."""
        self._run.note({"longcat.status": status or "lease_lost"})
        self._run.end(failed=status == "failed")


def spans_of(claim: Lease, tracing: Tracing | None) -> JobSpans:
    """The spans of a job that was just claimed."""
    return TracedJob(claim, tracing) if tracing else Untold()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
