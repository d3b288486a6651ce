"""Claim a job, keep its lease, and end it: the role of the worker that runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from redis import Redis

from jobs.capability import Capability
from jobs.connect import redis_reached
from jobs.errors import LeaseLost, LongCatError, UnreadableRecord
from jobs.order import SCHEMA_VERSION as ORDER_VERSION
from jobs.record import Job, JobError, Progress, Result, Status
from jobs.requirement import can_run
from jobs.store.maintenance import crash_error
from jobs.store.metrics import report_unread_fields, report_unreadable
from jobs.store.scripts import Scripts, fields_of, present, text, to_json, to_ms
from jobs.store.submission import SCHEMA_VERSION as RECORD_VERSION
from model.spec.steps import total_steps

StopReason = Literal["cancel", "deadline", "preempt", "drain", "lease_lost", "resize"]
"""Why a job is to stop: its client cancelled it, it ran too long, a high-priority job needs its place,
its worker shuts down, another worker holds it now, or its worker continues it with another number of
ranks."""

REQUIREMENTS_KEY = "longcat:requirements"
READER = f"{RECORD_VERSION}.{ORDER_VERSION}"
"""Identifies the records and orders that this release reads."""

Counts = list[tuple[str, str, float]]
"""Counters to increase: name, label and amount."""


@dataclass(frozen=True)
class Lease:
    """The right to run a job for `duration_s` after each renewal.

    Attributes:
        job: the job as it was claimed.
        fence: the fencing token: proves to the store who holds the job. It is the number of claims of the job
            so far, from 1; `job.attempt` leaves out those that ended in a drain or a preemption.
        duration_s: how long the lease lasts without a renewal.
        checkpoint: what an earlier holder saved to resume the job from.
        capability: what the group can run; None for everything.
    """

    job: Job
    fence: int
    duration_s: float
    checkpoint: dict[str, Any] | None = None
    capability: Capability | None = None


class JobHolder:
    """The changes that the holder of a job may make."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis = redis
        self._run = scripts.run

    def claim(self, group: str, lease_s: float, capability: Capability | None = None) -> Lease | None:
        """Claim the next job that this group can run. Return None if no such job may start.

        Without a capability, the group can run all. A job whose record this release cannot read is set aside:
        it stays queued for workers of other releases, and the next one is claimed.
        """
        while reply := self._claim(group, lease_s, capability):
            fields = fields_of(reply)
            try:
                job = Job.from_hash(fields)
            except UnreadableRecord as error:
                self._set_aside(fields, error)
            else:
                report_unread_fields(self._redis, job)
                return Lease(job, int(fields["fence"]), lease_s, self._checkpoint(fields), capability)
        return None

    def requirements(self, capability: Capability | None) -> list[str] | None:
        """Return the requirements of queued jobs that a group with this capability meets; None means all."""
        if capability is None:
            return None
        with redis_reached():
            known = sorted(text(requirement) for requirement in self._redis.smembers(REQUIREMENTS_KEY))
        return [requirement for requirement in known if can_run(capability, requirement)]

    def renew_lease(
        self,
        lease: Lease,
        progress: Progress | None = None,
        preempt_after_s: float | None = None,
        num_gpus: int | None = None,
    ) -> StopReason | None:
        """Renew the lease, store the progress, and return why the job is to stop, None if it is not.

        GPU time is counted with `num_gpus` from now on; without it, their number stays. While that is 0, the
        job waits for GPUs, and the time does not count as run time.

        With `preempt_after_s`, a job of low priority is preempted for one of high priority that has waited
        that long and that the group can run.
        """
        reason: bytes | None = self._run_held(
            "renew_lease",
            lease,
            progress=to_json(progress),
            lease_ms=to_ms(lease.duration_s),
            preempt_after_ms=to_ms(preempt_after_s),
            num_gpus=num_gpus,
            requirements=None if preempt_after_s is None else self.requirements(lease.capability),
        )
        return reason.decode() if reason else None  # type: ignore[return-value]

    def save_checkpoint(self, lease: Lease, checkpoint: Mapping[str, Any]) -> None:
        """Store what is needed to resume the job; the next claim returns it. Raises LeaseLost."""
        self._run_held("save_checkpoint", lease, checkpoint=json.dumps(dict(checkpoint)))

    def add_warning(self, lease: Lease, warning: str) -> None:
        """Add a warning to the job, unless it has the same one. Raises LeaseLost."""
        self._run_held("add_warning", lease, warning=warning)

    def begin_upload(self, lease: Lease) -> None:
        """Set the job to `uploading`. Raises LeaseLost."""
        self._run_held("begin_upload", lease)

    def succeed(self, lease: Lease, result: Result, timings_s: Mapping[str, float]) -> Status:
        """End the job with its result. Return the final status: `cancelled` if that was requested.

        Raises LeaseLost.
        """
        counts = [
            *_count_phases(timings_s),
            *_count_steps(lease.job, timings_s),
            ("video_seconds", lease.job.order.plan.task, result.duration_s),
            ("uploads", "stored", 1),
            ("uploaded_bytes", "", result.size_bytes),
        ]
        return self._finish(lease, "succeeded", timings_s, counts, result=to_json(result))

    def fail(self, lease: Lease, error: JobError | LongCatError, timings_s: Mapping[str, float]) -> Status:
        """End the job with an error. Return the final status, like `succeed`. Raises LeaseLost."""
        known = error if isinstance(error, JobError) else JobError.of(error)
        counts = _count_phases(timings_s)
        if known.code == "upload_failed":
            counts.append(("uploads", "failed", 1))
        return self._finish(lease, "failed", timings_s, counts, error=to_json(known))

    def confirm_cancel(self, lease: Lease) -> None:
        """End a job as cancelled, after it has stopped. Raises LeaseLost."""
        self._finish(lease, "cancelled", {}, [])

    def requeue(self, lease: Lease, *, crashed: bool, reason: str | None = None) -> Status:
        """Give the job up; it keeps its place in the queue. Return its status from now on.

        A crash uses up an attempt, and the last one fails the job, with the reason. A drain does not. Raises
        LeaseLost.
        """
        error = crash_error(reason)
        return _status(self._run_held("requeue", lease, crashed=crashed, crash_error=to_json(error)))

    def _finish(
        self,
        lease: Lease,
        status: Status,
        timings_s: Mapping[str, float],
        counts: Counts,
        **ending: str | None,
    ) -> Status:
        fields = present({**ending, "timings_s": json.dumps(dict(timings_s))})
        return _status(self._run_held("finish", lease, status=status, fields=fields, counts=counts))

    def _claim(self, group: str, lease_s: float, capability: Capability | None) -> Any:  # noqa: ANN401
        """Return the record of the next job, with its id, None if no job may start."""
        return self._run(
            "claim",
            group=group,
            lease_ms=to_ms(lease_s),
            num_gpus=capability.context_parallel if capability else 1,
            token=uuid4().hex,
            requirements=self.requirements(capability),
            order_version=ORDER_VERSION,
            reader=READER,
        )

    def _set_aside(self, fields: Mapping[str, str], error: UnreadableRecord) -> None:
        """Undo the claim of a job whose record this release cannot read."""
        report_unreadable(self._redis, "job", error)
        with suppress(LeaseLost):
            self._run("set_aside", id=fields["id"], fence=int(fields["fence"]), reader=READER)

    def _checkpoint(self, fields: Mapping[str, str]) -> dict[str, Any] | None:
        """Return the stored checkpoint, None if there is none that can be read."""
        if "checkpoint" not in fields:
            return None
        try:
            found = json.loads(fields["checkpoint"])
        except ValueError:
            found = None
        if not isinstance(found, dict):
            unreadable = UnreadableRecord(f"the checkpoint of job {fields['id']} is not JSON")
            report_unreadable(self._redis, "checkpoint", unreadable)
            return None
        return found

    def _run_held(self, script: str, lease: Lease, **given: object) -> Any:  # noqa: ANN401 - the script's own
        return self._run(script, id=lease.job.id, fence=lease.fence, **given)


def _count_phases(timings_s: Mapping[str, float]) -> Counts:
    counts: Counts = []
    for phase, seconds in timings_s.items():
        counts += [("phase_seconds_sum", phase, seconds), ("phase_seconds_count", phase, 1)]
    return counts


def _count_steps(job: Job, timings_s: Mapping[str, float]) -> Counts:
    if "denoise" not in timings_s:
        return []
    plan = job.order.plan
    step_s = timings_s["denoise"] / total_steps(
        plan, plan.num_segments, continues_clip=job.order.video is not None
    )
    return [("step_seconds_sum", plan.task, step_s), ("step_seconds_count", plan.task, 1)]


def _status(reply: bytes) -> Status:
    return reply.decode()  # type: ignore[return-value]
