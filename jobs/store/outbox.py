"""Webhooks that are to be sent: written by the transitions of jobs, taken by `service.webhooks`.

Each is delivered at least once: a taker leases a delivery, and unless it settles the delivery within the
lease, the delivery becomes due again. Owners take turns, and so do the hosts of one owner; no owner and no
host has more than a few deliveries in flight; a host that does not answer is paused
(`jobs/scripts/outbox.lua`). A delivery is removed with its job. This module does not sign or send anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict
from redis import Redis

from jobs.connect import redis_reached
from jobs.record import Job, WebhookEvent
from jobs.store.scripts import Scripts, present

Outcome = Literal["delivered", "failed", "given_up"]


@dataclass(frozen=True)
class Delivery:
    """One event on its way. `job` is as it was at the event; `attempt` counts from 1.

    `host` is a digest of the receiver's host and port.
    """

    id: str
    event: WebhookEvent
    at: datetime
    attempt: int
    host: str
    job: Job


class Attempt(BaseModel):
    """How it went once. `next_at` is when it is tried again, if it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: WebhookEvent
    attempt: int
    outcome: Outcome
    status_code: int | None = None
    error: str | None = None
    at: datetime | None = None
    next_at: datetime | None = None


@dataclass(frozen=True)
class Backlog:
    """The deliveries that wait. `oldest_due_s` is how long ago the oldest of them became due."""

    num_deliveries: int
    oldest_due_s: float
    num_paused_hosts: int


class Outbox:
    """The deliveries of all jobs. Safe between threads; raises Unavailable while Redis cannot be reached."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._run = Scripts(redis, clock).run

    def take(self, lease_s: float, max_per_owner: int = 4, max_per_host: int = 2) -> Delivery | None:
        """Lease the delivery whose turn it is, for `lease_s`; None if none may be sent now.

        Passes over owners and hosts that have as many deliveries in flight already, over all processes.
        """
        lease_ms = round(lease_s * 1000)
        found = self._run(
            "take_delivery", lease_ms=lease_ms, max_per_owner=max_per_owner, max_per_host=max_per_host
        )
        return _delivery(*found) if found else None

    def settle(self, delivery: Delivery, attempt: Attempt, retry_s: float | None) -> None:
        """Note how an attempt went; the delivery is due again after `retry_s`, or is removed.

        Changes nothing if the delivery was leased again meanwhile, or removed with its job.
        """
        self._run(
            "settle_delivery",
            id=delivery.id,
            attempt=delivery.attempt,
            job=delivery.job.id,
            owner=delivery.job.owner,
            host=delivery.host,
            answered=attempt.status_code is not None,
            entry=attempt.model_dump(exclude_none=True),
            retry_ms=None if retry_s is None else round(retry_s * 1000),
        )

    def backlog(self) -> Backlog:
        """Count the deliveries that wait."""
        num_deliveries, oldest_ms, num_paused = self._run("backlog")
        return Backlog(num_deliveries, oldest_ms / 1000, num_paused)

    def log(self, job_id: str) -> list[Attempt]:
        """Every attempt for this job, the first one first."""
        with redis_reached():
            entries = self._redis.lrange(f"longcat:deliveries:{job_id}", 0, -1)
        return [_attempt(json.loads(entry)) for entry in entries]


def _delivery(
    delivery_id: bytes, event: bytes, at_ms: bytes, attempt: int, host: bytes, record: bytes
) -> Delivery:
    return Delivery(
        id=delivery_id.decode(),
        event=event.decode(),  # type: ignore[arg-type] # one of those that the scripts know
        at=_time(at_ms.decode()),
        attempt=attempt,
        host=host.decode(),
        job=Job.from_hash({name: str(value) for name, value in json.loads(record).items()}),
    )


def _attempt(entry: dict[str, str | int]) -> Attempt:
    times = {"at": entry.pop("at_ms"), "next_at": entry.pop("next_ms", None)}
    return Attempt(**entry, **{name: _time(time) for name, time in present(times).items()})


def _time(milliseconds: object) -> datetime:
    return datetime.fromtimestamp(int(str(milliseconds)) / 1000, UTC)
