"""Which job answers an idempotency key, so that a request sent twice makes one job. The service calls it.

There is no lock that a dead process could leave behind. A key is given a job id before anything is done, and
everybody who comes with the same key and the same request goes on under that id; submitting an id twice
queues one job. With the submission the key is bound to the job, and goes when the job goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis

from jobs.record import Job
from jobs.storage.keys import new_job_id
from jobs.store.scripts import Scripts, fields_of

KEEP_S = 900.0  # longer than a request may take


@dataclass(frozen=True)
class Hold:
    """A key that is held for a request; `job` is there if the request came through before.

    `name` is the key's in Redis, `fingerprint` says what was asked for.
    """

    name: str
    fingerprint: str
    job_id: str
    job: Job | None = None


class IdempotencyKeys:
    """The keys of all owners. Raises Unavailable while Redis cannot be reached."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._run = Scripts(redis, clock).run

    def hold(self, owner: str, key: str, fingerprint: str) -> Hold:
        """Find the job of this owner's key, or the id under which it is to be made.

        Raises KeyReused if the key was given to a request with another fingerprint.
        """
        name = _name(owner, key)
        job_id, record = self._run(
            "hold_key", key=name, fingerprint=fingerprint, id=new_job_id(), keep_ms=round(KEEP_S * 1000)
        )
        return Hold(name, fingerprint, job_id.decode(), Job.from_hash(fields_of(record)) if record else None)

    def release(self, hold: Hold) -> None:
        """Give the key back after a request that made no job."""
        self._run("release_key", key=hold.name, id=hold.job_id)


def _name(owner: str, key: str) -> str:
    """The key's name in Redis: as short as any other, whatever the client chose, and no other owner's."""
    return f"longcat:idempotency:{hashlib.sha256(json.dumps([owner, key]).encode()).hexdigest()}"
