"""Every change that a job's record can go through, each one atomic script in Redis.

The service submits, cancels and deletes; a worker claims a job and then speaks as its holder; any process
sweeps. What a script does is written in `jobs/scripts`. The rules they keep:

- A final state never changes.
- A claim carries a fence, one more than the claim before; who lost the job or has an older one is refused.
- Every script may run twice, since a command whose reply was lost is sent again.
- Time is the Redis server's, so that the clocks of machines do not matter.

It does not know how work is delivered (`jobs.queue`) nor where files lie (`jobs.storage`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel
from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import DeadlineExceeded, LongCatError, WorkerCrashed
from jobs.quotas import Quotas
from jobs.record import Event, Job, JobError, Outlook, Progress, Result, Status
from jobs.scripts import Scripts, fields_of, present
from jobs.submission import Submission

Verdict = Literal["go", "cancel", "deadline", "preempt", "lost"]

_LONGEST_WAIT_S = 5.0  # well within the timeout of the connection
_CRASHED = JobError.of(WorkerCrashed("the worker died under this job as often as a job may try"))
_OVERDUE = JobError.of(DeadlineExceeded("the job waited longer than it may before a worker began it"))


@dataclass(frozen=True)
class Claim:
    """A job as its holder has it. `fence` proves who holds it; `saved` is what an earlier holder left."""

    job: Job
    fence: int
    lease_s: float
    saved: dict[str, Any] | None = None

    @property
    def attempt(self) -> int:
        """Which start this is, from 1; never given twice. `job.attempt` counts without those drained."""
        return self.fence


@dataclass(frozen=True)
class Swept:
    """The jobs that a sweep changed."""

    requeued: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()


class Ledger:
    """The record of every job. Safe to share between threads.

    All methods raise Unavailable while Redis cannot be reached. `late_s` is how long a file may be on its way
    to the storage (`SharedSettings.late_s`). `clock` (milliseconds) replaces the server's in tests.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        retention_s: float = 7 * 86400.0,
        max_attempts: int = 3,
        late_s: float = 300.0,
        quotas: Quotas = Quotas(),  # noqa: B008 - frozen
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._redis = redis
        self._retention_s = retention_s
        self._max_attempts = max_attempts
        self._late_s = late_s
        self._quotas = quotas
        self._run: Callable[..., Any] = Scripts(redis, clock).run

    def of(self, owner: str) -> Ledger:
        """The same ledger as this owner sees it: the jobs of others are not there."""
        theirs = copy.copy(self)
        theirs._run = partial(self._run, owner=owner)  # noqa: SLF001 - one of us
        return theirs

    # The service

    def reserve(self, job_id: str) -> None:
        """Say that a file is about to be stored; unless the job is submitted within `late_s`, it is removed.

        So a request that was broken off leaves none. Raises JobNotFound once the time is up.
        """
        self._run("reserve", id=job_id, keep_ms=_ms(self._late_s))

    def admit(self, owner: str) -> None:
        """Count a request of this owner. Raises LimitReached if requests come too fast."""
        if limits := self._quotas.of_requests:
            self._run("admit", owner=owner, limits=limits)

    def submit(self, submission: Submission) -> Job:
        """Queue a job; submitting the same id again changes nothing and gives the job as it stands.

        Raises JobNotFound if the id was deleted, or its reservation ran out, before it was submitted,
        KeyReused if its idempotency key went to another request meanwhile, and LimitReached.
        """
        record = {
            **submission.record(),
            **self._quotas.of_running,
            "max_attempts": self._max_attempts,
            "retention_ms": _ms(self._retention_s),
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
        """The job as it stands. Raises JobNotFound."""
        return _job(self._run("get", id=job_id))

    def page(
        self,
        *,
        status: Status | None = None,
        limit: int = 20,
        after: str | None = None,
        newest_first: bool = True,
    ) -> list[Job]:
        """Jobs in the order of their submission, beginning behind the job `after`.

        Raises JobNotFound if `after` is not there (any more).
        """
        found = self._run("page", status=status, limit=limit, after=after, newest=newest_first)
        return [_job(record) for record in found]

    def position(self, job_id: str) -> int | None:
        """Place in the queue, as `outlook` has it; None if the job is not queued."""
        outlook = self.outlook(job_id)
        return outlook.position if outlook else None

    def outlook(self, job_id: str) -> Outlook | None:
        """Place in the queue, and when the job will have ended, judged by recent ones; None if not queued."""
        if (found := self._run("outlook", id=job_id)) is None:
            return None
        return Outlook(position=found[0], eta_s=found[1] / 1000 if len(found) > 1 else None)

    def cancel(self, job_id: str) -> Job:
        """End a queued job at once; have the holder of a running one stop.

        From then on the job ends as cancelled, whatever its holder reports. Cancelling a cancelled job
        changes nothing. Raises JobNotFound, and JobEnded if the job succeeded or failed.
        """
        return _job(self._run("cancel", id=job_id))

    def delete(self, job_id: str) -> bool:
        """Remove a job; its files are removed after it. True if the record is gone already.

        A running job is cancelled and goes when its holder has let go. Raises JobNotFound.
        """
        return bool(self._run("delete", id=job_id, token=uuid4().hex))

    def counts(self) -> dict[Status, int]:
        """How many jobs are in each status."""
        return {status: int(n) for status, n in fields_of(self._run("counts")).items()}  # type: ignore[misc]

    def num_awaited(self) -> int:
        """How many tickets there should be: one for each queued job, none while none of them may begin."""
        return int(self._run("awaited"))

    def events(self, job_id: str, after: str = "0", wait_s: float = 0.0) -> list[Event]:
        """Changes of a job after the event `after`, waiting up to `wait_s` (at most 5) for the first.

        [] if none came; a job that is not there has none.
        """
        key = f"longcat:events:{job_id}"
        with redis_reached():
            streams: Any = self._redis.xread({key: after}, block=_ms(min(wait_s, _LONGEST_WAIT_S)) or None)
        entries = streams[0][1] if isinstance(streams, list) and streams else []
        return [Event.from_entry(entry_id, entry) for entry_id, entry in entries]

    # The holder of a job

    def claim(self, group: str, lease_s: float) -> Claim | None:
        """Take the job that is next for `lease_s`, which `beat` renews; None if none is queued."""
        if (reply := self._run("claim", group=group, lease_ms=_ms(lease_s), token=uuid4().hex)) is None:
            return None
        fields = fields_of(reply)
        saved = json.loads(fields["saved"]) if "saved" in fields else None
        return Claim(Job.from_hash(fields), int(fields["fence"]), lease_s, saved)

    def beat(
        self, claim: Claim, progress: Progress | None = None, preempt_after_s: float | None = None
    ) -> Verdict:
        """Renew the lease, tell how far the job is, and learn whether to go on.

        With `preempt_after_s` a low job may have to `preempt`: a high one has waited for so long.
        """
        times = {"lease_ms": _ms(claim.lease_s), "preempt_after_ms": _ms(preempt_after_s)}
        verdict: bytes = self._hold("beat", claim, progress=_dump(progress), **times)
        return verdict.decode()  # type: ignore[return-value]

    def remember(self, claim: Claim, saved: Mapping[str, Any]) -> None:
        """Keep what is needed to resume the job; the next claim carries it. Raises LeaseLost."""
        self._hold("remember", claim, saved=json.dumps(dict(saved)))

    def begin_upload(self, claim: Claim) -> None:
        """The video is made and is being stored. Raises LeaseLost."""
        self._hold("begin_upload", claim)

    def succeed(self, claim: Claim, result: Result, timings_s: Mapping[str, float]) -> Status:
        """End the job with its result: the one commit. Gives the state in which it ended.

        That is `cancelled` if it had been asked for. Raises LeaseLost.
        """
        return self._finish(claim, "succeeded", timings_s, result=_dump(result))

    def fail(self, claim: Claim, error: JobError | LongCatError, timings_s: Mapping[str, float]) -> Status:
        """End the job with an error; gives the state in which it ended, as `succeed`. Raises LeaseLost."""
        known = error if isinstance(error, JobError) else JobError.of(error)
        return self._finish(claim, "failed", timings_s, error=_dump(known))

    def acknowledge_cancel(self, claim: Claim) -> None:
        """The holder has stopped, as `beat` told it to. Raises LeaseLost."""
        self._finish(claim, "cancelled", {})

    def requeue(self, claim: Claim, *, crashed: bool) -> Status:
        """Let go of the job, which keeps its place in the queue. Gives the state that follows.

        A crash uses up an attempt, and the last one fails the job; a drain gives it back. Raises LeaseLost.
        """
        return _status(self._hold("requeue", claim, crashed=crashed, crash_error=_dump(_CRASHED)))

    # Every process

    def sweep(self) -> Swept:
        """Requeue jobs whose lease ran out, fail those that waited too long, remove those that expired.

        Any number of processes may do this at any time; one should every second or so. Leases do not run out
        while nobody sweeps, since then Redis was away, and no holder could renew one.
        """
        ids: dict[str, list[str]] = {}
        for what, job_id in self._run("sweep", crash_error=_dump(_CRASHED), overdue_error=_dump(_OVERDUE)):
            ids.setdefault(what.decode(), []).append(job_id.decode())
        return Swept(**{what: tuple(changed) for what, changed in ids.items()})

    def removals(self, limit: int = 100) -> dict[str, str]:
        """Jobs that ended or are gone whose files are to be looked through, and since when."""
        return fields_of(self._run("removals", limit=limit))

    def removed(self, job_id: str, since: str) -> None:
        """Files without use of one of `removals` are removed; the first time, once more `late_s` later."""
        self._run("removed", id=job_id, since=since, late_ms=_ms(self._late_s))

    def stored_late(self, job_id: str) -> None:
        """A file may have been stored for a claim that was lost: it is of no use if the job has ended."""
        self._run("stored_late", id=job_id)

    def owns_files(self, job_id: str) -> bool:
        """Whether files of this id may be in storage: a job has it, or it is reserved or being removed."""
        return bool(self._run("owns_files", id=job_id))

    def _finish(
        self, claim: Claim, status: Status, timings_s: Mapping[str, float], **ending: str | None
    ) -> Status:
        fields = present({**ending, "timings_s": json.dumps(dict(timings_s))})
        return _status(self._hold("finish", claim, status=status, fields=fields))

    def _hold(self, script: str, claim: Claim, **given: object) -> bytes:
        reply: bytes = self._run(script, id=claim.job.id, fence=claim.fence, **given)
        return reply


def _job(reply: list[bytes]) -> Job:
    return Job.from_hash(fields_of(reply))


def _status(reply: bytes) -> Status:
    return reply.decode()  # type: ignore[return-value]


def _dump(model: BaseModel | None) -> str | None:
    return None if model is None else model.model_dump_json()


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
