"""Lease and settle the webhooks that are to be sent. The scripts that change jobs write them.

Each webhook is delivered at least once. A consumer leases a delivery. If it does not settle the delivery
within the lease, the delivery becomes due again. Owners take turns, and so do the hosts of one
owner; no owner and no host has more than a few deliveries in flight; a host that does not respond is paused
(`scripts/parts/outbox.lua`). A delivery is removed with its job. `service.webhooks` signs and sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter
from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import UnreadableRecord
from jobs.record import Job, WebhookEvent
from jobs.store.metrics import report_unreadable
from jobs.store.scripts import Scripts, decoded, present, to_ms

Outcome = Literal["delivered", "failed", "given_up"]


@dataclass(frozen=True)
class Delivery:
    """A leased webhook.

    Attributes:
        event: the change of the job that it reports.
        at: the time of the event.
        attempt: the number of this attempt, from 1.
        host: a digest of the receiver's host and port.
        job: the job as it was at the event.
    """

    id: str
    event: WebhookEvent
    at: datetime
    attempt: int
    host: str
    job: Job


class Attempt(BaseModel):
    """The outcome of one attempt. `next_at` is when the next one is due, if there is one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: WebhookEvent
    attempt: int
    outcome: Outcome
    status_code: int | None = None
    error: str | None = None
    at: datetime | None = None
    next_at: datetime | None = None


@dataclass(frozen=True)
class Backlog:
    """The unsent deliveries. `oldest_due_s` is how long ago the oldest of them became due."""

    num_deliveries: int
    oldest_due_s: float
    num_paused_hosts: int


class Outbox:
    """The deliveries of all jobs. Safe between threads. Methods raise Unavailable without Redis."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._run = Scripts(redis, clock).run

    def take(self, lease_s: float, max_per_owner: int = 4, max_per_host: int = 2) -> Delivery | None:
        """Lease the next delivery for `lease_s`. Return None if none may be sent now.

        Owners and hosts that have as many deliveries in flight already, over all processes, are passed over.
        A delivery whose job cannot be read is given up.
        """
        limits = {"max_per_owner": max_per_owner, "max_per_host": max_per_host}
        while reply := self._run("take_delivery", lease_ms=to_ms(lease_s), **limits):
            try:
                return _delivery(*reply)
            except UnreadableRecord as error:
                report_unreadable(self._redis, "delivery", error)
                self._give_up(*reply)
        return None

    def settle(self, delivery: Delivery, attempt: Attempt, retry_s: float | None) -> None:
        """Record the outcome of an attempt. The delivery is due again after `retry_s`, or is removed.

        Changes nothing if the delivery was leased again meanwhile, or removed with its job.
        """
        self._run(
            "settle_delivery",
            id=delivery.id,
            attempt=delivery.attempt,
            job=delivery.job.id,
            owner=delivery.job.owner,
            host=delivery.host,
            responded=attempt.status_code is not None,
            entry=attempt.model_dump(exclude_none=True),
            retry_ms=to_ms(retry_s),
        )

    def backlog(self) -> Backlog:
        """Count the unsent deliveries."""
        num_deliveries, oldest_ms, num_paused = self._run("backlog")
        return Backlog(num_deliveries, oldest_ms / 1000, num_paused)

    def log(self, job_id: str) -> list[Attempt]:
        """Return every attempt for this job, the first one first. Unreadable entries are passed over."""
        with redis_reached():
            entries = self._redis.lrange(f"longcat:delivery_log:{job_id}", 0, -1)
        attempts: list[Attempt] = []
        for entry in entries:
            try:
                attempts.append(_attempt(json.loads(entry)))
            except (ValueError, TypeError, AttributeError):  # pydantic's error is a ValueError
                report_unreadable(self._redis, "attempt", UnreadableRecord(f"webhooks of job {job_id}"))
        return attempts

    def _give_up(
        self, delivery_id: bytes, event: bytes, _at_ms: bytes, attempt: int, host: bytes, record: bytes
    ) -> None:
        fields = json.loads(record)
        entry = {"event": event.decode(), "attempt": attempt, "outcome": "given_up", "error": "unreadable"}
        self._run(
            "settle_delivery",
            id=delivery_id.decode(),
            attempt=attempt,
            job=fields["id"],
            owner=fields["owner"],
            host=host.decode(),
            responded=True,  # the host is not to blame
            entry=entry,
        )


_DELIVERY = TypeAdapter(Delivery)


def _delivery(
    delivery_id: bytes, event: bytes, at_ms: bytes, attempt: int, host: bytes, record: bytes
) -> Delivery:
    try:
        return _DELIVERY.validate_python(
            {
                "id": delivery_id.decode(),
                "event": event.decode(),
                "at": _time(at_ms.decode()),
                "attempt": attempt,
                "host": host.decode(),
                "job": Job.from_hash(decoded(json.loads(record).items())),
            }
        )
    except ValueError as error:
        raise UnreadableRecord(f"delivery {delivery_id.decode()}: {error}") from error


def _attempt(entry: dict[str, Any]) -> Attempt:
    times = {"at": entry.pop("at_ms", None), "next_at": entry.pop("next_ms", None)}
    return Attempt(**entry, **{name: _time(time) for name, time in present(times).items()})


def _time(milliseconds: object) -> datetime:
    return datetime.fromtimestamp(int(str(milliseconds)) / 1000, UTC)
