"""Submit, show, cancel and delete jobs: the role of the service.

Next on the way of a request: `jobs.queue`, which signals that there is work.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args
from uuid import uuid4

from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import JobEnded, JobNotFound, UnreadableRecord
from jobs.fleet import Fleet
from jobs.record import Job, JobEvent, QueueEstimate, Status
from jobs.store.estimates import QueueSnapshot, estimates, expected_s
from jobs.store.listing import (
    MAX_LOOKED_AT,
    Cursor,
    JobFilter,
    JobIndexes,
    RecordPage,
    read_records,
    record_key,
)
from jobs.store.metrics import report_unread_fields, report_unreadable
from jobs.store.queue_depths import recent_runs
from jobs.store.quotas import Quotas
from jobs.store.scripts import Scripts, decoded, fields_of, to_ms
from jobs.store.submission import Submission, Submitted
from jobs.work import work_units

_LONGEST_WAIT_S = 5.0  # well within the timeout of the connection


class JobClient:
    """The jobs as clients see them; see `JobStore` for the arguments."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        *,
        retention_s: float,
        max_attempts: int,
        late_upload_s: float,
        quotas: Quotas,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._retention_s = retention_s
        self._max_attempts = max_attempts
        self._late_upload_s = late_upload_s
        self._quotas = quotas
        self._owner: str | None = None

    def for_owner(self, owner: str) -> JobClient:
        """Return a client that sees the jobs of this owner only."""
        restricted = copy.copy(self)
        restricted._owner = owner  # noqa: SLF001 - the same class
        return restricted

    def reserve(self, *job_ids: str) -> None:
        """Announce files of jobs that are not submitted yet.

        They are removed unless the jobs are submitted within `late_upload_s`, so a request that was broken
        off leaves no files. Raises JobNotFound once the time of one of them is over; nothing changes then.
        """
        self._run("reserve", ids=job_ids, keep_ms=to_ms(self._late_upload_s))

    def count_request(self, owner: str) -> None:
        """Count a request of this owner. Raises LimitReached if requests come too fast."""
        if limits := self._quotas.of_requests:
            self._scripts.run("count_request", owner=owner, limits=limits)

    def submit(self, *submissions: Submission) -> Submitted:
        """Queue a job, or all jobs of a batch or none. Tell whether they are new, and return the first.

        The jobs of a batch have the same owner and size, and the first one has the idempotency key.
        Submitting the same ids again changes nothing.

        Raises JobNotFound if an id was deleted, or its reservation ran out, before it was submitted;
        KeyReused if the idempotency key went to another request meanwhile; LimitReached.
        """
        common = {
            **self._quotas.of_running,
            "max_attempts": self._max_attempts,
            "retention_ms": to_ms(self._retention_s),
        }
        reservation = submissions[0].key_reservation
        is_new, reply = self._run(
            "submit",
            records=[{**submission.record(), **common} for submission in submissions],
            fingerprint=reservation and reservation.fingerprint,
            limits=self._quotas.of_submission,
            input_bytes=_input_bytes(submissions),
        )
        return Submitted(self._read(fields_of(reply)), is_new == 1)

    def check_quotas(self, *submissions: Submission) -> None:
        """Raise LimitReached if the jobs would exceed a limit now, unless they exist. Nothing is stored."""
        self._run(
            "check_quotas",
            record=submissions[0].record(),
            num_jobs=len(submissions),
            limits=self._quotas.of_submission,
            input_bytes=_input_bytes(submissions),
        )

    def get(self, job_id: str) -> Job:
        """Return a job. Raises JobNotFound, and UnreadableRecord if this release cannot read it."""
        with redis_reached():
            fields = decoded(self._redis.hgetall(record_key(job_id)).items())
        if not fields or not self._sees(fields.get("owner", "")):
            raise JobNotFound("no such job")
        return self._read(fields)

    def get_all(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Return jobs by id, in one round trip. Those that do not exist or cannot be read are left out."""
        found: dict[str, Job] = {}
        with redis_reached():
            records = read_records(self._redis, job_ids)
        for job_id, fields in records.items():
            if self._sees(fields.get("owner", "")):
                with suppress(UnreadableRecord):
                    found[job_id] = self._read(fields)
        return found

    def list_jobs(self, *, limit: int = 20, after: str | None = None, newest_first: bool = True) -> list[Job]:
        """Return jobs in the order of their submission, beginning behind the job `after`.

        Records that cannot be read are passed over. Raises JobNotFound if the job `after` no longer exists.
        """
        start = None if after is None else Cursor.parse(after)
        with redis_reached():
            return self._indexes().walk(JobFilter(), limit, start, newest_first=newest_first).jobs

    def page(
        self, wanted: JobFilter, limit: int, after: Cursor | None = None, before: Cursor | None = None
    ) -> RecordPage:
        """Return a page of the jobs that are wanted; see `JobIndexes.page`."""
        with redis_reached():
            return self._indexes().page(wanted, limit, after, before)

    def estimates(self, job_ids: Sequence[str], fleet: Fleet | None = None) -> dict[str, QueueEstimate]:
        """Estimate when queued jobs will be done, from recent jobs. Leave out those that are not queued.

        The groups of `fleet` that can run a job count, and the jobs that these groups can run; by default all
        of them. If no live group can run a job, it has no ETA.
        """
        reply = self._run("queue_snapshot", ids=job_ids) if job_ids else None
        return {} if reply is None else estimates(QueueSnapshot.from_reply(reply), fleet)

    def estimate(self, job_id: str, fleet: Fleet | None = None) -> QueueEstimate | None:
        """Estimate when a queued job will be done. Return None if it is not queued."""
        return self.estimates([job_id], fleet).get(job_id)

    def predict(self, submission: Submission, fleet: Fleet | None = None) -> QueueEstimate:
        """Estimate when a job would be done that is not submitted yet; see `estimates`.

        Its place is that of a job that is expected to run as long as this one. Queued jobs that are late are
        moved first, as by a claim, so that it is not expected behind jobs that start after it.
        """
        plan = submission.order.plan
        run_s = expected_s(recent_runs(self._redis), plan.task, work_units(plan))
        submission = replace(submission, expected_run_s=run_s)
        self._run("move_late_jobs")
        reply = self._run("queue_snapshot", ids=[], new=submission.record())
        return estimates(QueueSnapshot.from_reply(reply), fleet)[submission.id]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: a queued one ends at once, a running one is asked to stop. Return the job.

        From now on it ends as cancelled, whatever its holder reports. Cancelling a cancelled job changes
        nothing. Raises JobNotFound, and JobEnded if the job succeeded or failed.
        """
        return self._read(fields_of(self._run("cancel", id=job_id)))

    def cancel_batch(self, batch_id: str) -> list[Job]:
        """Cancel the jobs of a batch that have not ended, and return all of them, the first one first.

        Raises JobNotFound if no job of this batch is left.
        """
        for job in self._batch(batch_id):
            with suppress(JobEnded, JobNotFound):
                self.cancel(job.id)
        return self._batch(batch_id)

    def delete(self, job_id: str) -> bool:
        """Remove a job; its files are removed after it. Return True if the record is gone already.

        A running job is cancelled, and removed when its holder has stopped. Raises JobNotFound.
        """
        return bool(self._run("delete", id=job_id, token=uuid4().hex))

    def counts(self) -> dict[Status, int]:
        """Return the number of jobs of all owners in each status.

        A job that changes its status meanwhile may be missing, or count twice.
        """
        statuses: tuple[Status, ...] = get_args(Status)
        # No transaction: Redis refuses even those that only read, while it is full.
        with redis_reached(), self._redis.pipeline(transaction=False) as pipeline:
            for status in statuses:
                pipeline.zcard(f"longcat:index:{status}")
            return dict(zip(statuses, pipeline.execute(), strict=True))

    def events(self, job_id: str, after: str = "0", wait_s: float = 0.0) -> list[JobEvent]:
        """Return changes of a job after the event `after`, waiting up to `wait_s` (at most 5) for the first.

        Return [] if none came, or if there is no such job.
        """
        key = f"longcat:events:{job_id}"
        with redis_reached():
            streams: Any = self._redis.xread({key: after}, block=to_ms(min(wait_s, _LONGEST_WAIT_S)) or None)
        entries = streams[0][1] if isinstance(streams, list) and streams else []
        events: list[JobEvent] = []
        for entry_id, entry in entries:
            try:
                events.append(JobEvent.from_entry(entry_id, entry))
            except UnreadableRecord as error:
                report_unreadable(self._redis, "event", error)
        return events

    def _batch(self, batch_id: str) -> list[Job]:
        with redis_reached():
            jobs = (
                self._indexes()
                .walk(JobFilter(batch=batch_id), MAX_LOOKED_AT, start=None, newest_first=False)
                .jobs
            )
        if not jobs:
            raise JobNotFound("no such batch")
        return jobs

    def _run(self, script: str, **given: object) -> Any:  # noqa: ANN401 - each script has its own reply
        return self._scripts.run(script, owner=self._owner, **given)

    def _sees(self, owner: str) -> bool:
        return self._owner in {None, owner}

    def _indexes(self) -> JobIndexes:
        return JobIndexes(self._redis, self._owner, self._read)

    def _read(self, fields: Mapping[str, str]) -> Job:
        """Return the job with this record. Raises UnreadableRecord, after counting it."""
        try:
            job = Job.from_hash(fields)
        except UnreadableRecord as error:
            report_unreadable(self._redis, "job", error)
            raise
        report_unread_fields(self._redis, job)
        return job


def _input_bytes(submissions: Sequence[Submission]) -> int:
    return sum(file.size_bytes for submission in submissions for file in submission.order.inputs)
