"""Show jobs to clients, queued ones with their place in the queue and the time at which they may end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from jobs.fleet import Fleet
from jobs.record import Job, Progress, QueueEstimate
from service.backend import RequestBackend
from service.jobs.views import JobView

_NO_GROUP = "no live group can run this job"
_LONGEST_ETA_S = 366 * 86400.0


def show(job: Job, backend: RequestBackend) -> JobView:
    """Return a job as clients see it. Raises Unavailable."""
    return show_all([job], backend)[0]


def show_all(jobs: Sequence[Job], backend: RequestBackend) -> list[JobView]:
    """Return jobs as clients see them. All estimates take one command. Raises Unavailable.

    The fleet may be a second old: it has a record for each group, too many to read for each poll.
    """
    estimates: dict[str, QueueEstimate] = {}
    waiting_for: dict[str, str] = {}
    if queued := [job for job in jobs if job.status == "queued"]:
        fleet = backend.fleet_reader.recent()
        estimates = backend.jobs.estimates([job.id for job in queued], fleet)
        waiting_for = {job.id: _NO_GROUP for job in queued if not fleet.pools_for(job.requirement)}
    public_url, now = backend.settings.public_url, datetime.now(UTC)
    shown = []
    for job in jobs:
        estimate = estimates.get(job.id)
        expected = _with_eta(job, estimate)
        position = estimate.position if estimate else None
        finish_at = _predicted_finish(expected, now)
        shown.append(JobView.of(expected, position, public_url, waiting_for.get(job.id), finish_at))
    return shown


def with_queue_estimate(job: Job, backend: RequestBackend, fleet: Fleet) -> tuple[Job, int | None]:
    """Return the job with an ETA in its progress where there is an estimate, and its queue position.

    The position is None unless the job is queued. Raises Unavailable.
    """
    estimate = backend.jobs.estimate(job.id, fleet) if job.status == "queued" else None
    return _with_eta(job, estimate), estimate.position if estimate else None


def _with_eta(job: Job, estimate: QueueEstimate | None) -> Job:
    if estimate is None or estimate.eta_s is None:
        return job
    progress = job.progress or Progress(phase="load", num_segments=job.order.plan.num_segments)
    return job.model_copy(update={"progress": progress.model_copy(update={"eta_s": estimate.eta_s})})


def _predicted_finish(job: Job, now: datetime) -> datetime | None:
    if job.ended or job.progress is None or job.progress.eta_s is None:
        return None
    return now + timedelta(seconds=min(job.progress.eta_s, _LONGEST_ETA_S))
