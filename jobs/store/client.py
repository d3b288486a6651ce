"""Submit, show, cancel and delete jobs: the role of the service."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from redis import Redis

from jobs.connect import redis_reached
from jobs.record import Event, Job, QueueEstimate, Status
from jobs.store.quotas import Quotas
from jobs.store.scripts import Scripts, fields_of, to_ms
from jobs.store.submission import Submission

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
        self._run: Callable[..., Any] = scripts.run
        self._retention_s = retention_s
        self._max_attempts = max_attempts
        self._late_upload_s = late_upload_s
        self._quotas = quotas

    def for_owner(self, owner: str) -> JobClient:
        """Return a client that sees the jobs of this owner only."""
        restricted = copy.copy(self)
        restricted._run = partial(self._run, owner=owner)  # noqa: SLF001 - the same class
        return restricted

    def reserve(self, job_id: str) -> None:
        """Announce files of a job that is not submitted yet.

        They are removed unless it is submitted within `late_upload_s`, so
        a request that was broken off leaves no files. Raises JobNotFound once the time is over.
        """
        self._run("reserve", id=job_id, keep_ms=to_ms(self._late_upload_s))

    def count_request(self, owner: str) -> None:
        """Count a request of this owner. Raises LimitReached if requests come too fast."""
        if limits := self._quotas.of_requests:
            self._run("count_request", owner=owner, limits=limits)

    def submit(self, submission: Submission) -> Job:
        """Queue a job, and return it. Submitting the same id again changes nothing and returns the job.

        Raises JobNotFound if the id was deleted, or its reservation ran out, before it was submitted;
        KeyReused if its idempotency key went to another request meanwhile; LimitReached.
        """
        record = {
            **submission.record(),
            **self._quotas.of_running,
            "max_attempts": self._max_attempts,
            "retention_ms": to_ms(self._retention_s),
        }
        reply = self._run(
            "submit",
            id=submission.id,
            record=record,
            fingerprint=submission.hold and submission.hold.fingerprint,
            limits=self._quotas.of_submission,
            input_bytes=sum(file.size_bytes for file in submission.order.inputs),
        )
        return _job(reply)

    def get(self, job_id: str) -> Job:
        """Return a job. Raises JobNotFound."""
        return _job(self._run("get", id=job_id))

    def page(
        self,
        *,
        status: Status | None = None,
        limit: int = 20,
        after: str | None = None,
        newest_first: bool = True,
    ) -> list[Job]:
        """Return jobs in the order of their submission, beginning behind the job `after`.

        Raises JobNotFound if the job `after` no longer exists.
        """
        found = self._run("page", status=status, limit=limit, after=after, newest=newest_first)
        return [_job(record) for record in found]

    def estimate(self, job_id: str) -> QueueEstimate | None:
        """Estimate when a queued job will be done, from recent jobs. Return None if it is not queued."""
        if (found := self._run("estimate", id=job_id)) is None:
            return None
        return QueueEstimate(position=found[0], eta_s=found[1] / 1000 if len(found) > 1 else None)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: a queued one ends at once, a running one is asked to stop. Return the job.

        From now on it ends as cancelled, whatever its holder reports. Cancelling a cancelled job changes
        nothing. Raises JobNotFound, and JobEnded if the job succeeded or failed.
        """
        return _job(self._run("cancel", id=job_id))

    def delete(self, job_id: str) -> bool:
        """Remove a job; its files are removed after it. Return True if the record is gone already.

        A running job is cancelled, and removed when its holder has stopped. Raises JobNotFound.
        """
        return bool(self._run("delete", id=job_id, token=uuid4().hex))

    def counts(self) -> dict[Status, int]:
        """Return the number of jobs in each status."""
        return {status: int(n) for status, n in fields_of(self._run("counts")).items()}  # type: ignore[misc]

    def events(self, job_id: str, after: str = "0", wait_s: float = 0.0) -> list[Event]:
        """Return changes of a job after the event `after`, waiting up to `wait_s` (at most 5) for the first.

        Return [] if none came, or if there is no such job.
        """
        key = f"longcat:events:{job_id}"
        with redis_reached():
            streams: Any = self._redis.xread({key: after}, block=to_ms(min(wait_s, _LONGEST_WAIT_S)) or None)
        entries = streams[0][1] if isinstance(streams, list) and streams else []
        return [Event.from_entry(entry_id, entry) for entry_id, entry in entries]


def _job(reply: list[bytes]) -> Job:
    return Job.from_hash(fields_of(reply))
