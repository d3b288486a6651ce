"""Find the job that answers an idempotency key, so that a request sent twice creates one job.

There is no lock that a dead process could leave behind. A key gets a job id before anything else happens.
Every request with the same key and the same content continues under that id, and submitting an id twice
queues one job. Submission binds the key to the job, and the key is removed with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis

from jobs.record import Job
from jobs.storage.keys import new_job_id
from jobs.store.scripts import Scripts, fields_of, to_ms

KEEP_S = 900.0  # longer than a request may take


@dataclass(frozen=True)
class KeyReservation:
    """An idempotency key that is reserved for a request.

    Attributes:
        name: the key's name in Redis.
        fingerprint: a digest of the request.
        job_id: the id under which the request creates a job.
        job: the job, if an earlier request with this key created it.
    """

    name: str
    fingerprint: str
    job_id: str
    job: Job | None = None


class IdempotencyKeys:
    """The keys of all owners. Methods raise Unavailable while Redis cannot be reached."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._run = Scripts(redis, clock).run

    def reserve(self, owner: str, key: str, fingerprint: str) -> KeyReservation:
        """Reserve this owner's key for a request, and return its job or the id under which to create one.

        Raises KeyReused if the key was given to a request with another fingerprint.
        """
        name = _name(owner, key)
        job_id, record = self._run(
            "reserve_key", key=name, fingerprint=fingerprint, id=new_job_id(), keep_ms=to_ms(KEEP_S)
        )
        job = Job.from_hash(fields_of(record)) if record else None
        return KeyReservation(name, fingerprint, job_id.decode(), job)

    def release(self, reservation: KeyReservation) -> None:
        """Free the key after a request that created no job."""
        self._run("release_key", key=reservation.name, id=reservation.job_id)


def _name(owner: str, key: str) -> str:
    """Return the key's name in Redis: of one length whatever the client chose, and unique to the owner."""
    return f"longcat:idempotency:{hashlib.sha256(json.dumps([owner, key]).encode()).hexdigest()}"
