"""Webhooks that are to be sent: put here by the transitions of jobs, taken out by `service.webhooks`.

Each is delivered at least once: who takes one has it for a while, and unless he settles it, it is due again.
It does not know how webhooks are signed or sent.
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
from jobs.scripts import Scripts, fields_of, present

Outcome = Literal["delivered", "failed", "given_up"]


@dataclass(frozen=True)
class Delivery:
    """One event on its way. `job` is as it was at the event; `attempt` counts from 1."""

    id: str
    event: WebhookEvent
    at: datetime
    attempt: int
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


class Outbox:
    """The deliveries of all jobs. Safe between threads; raises Unavailable while Redis cannot be reached."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._run = Scripts(redis, clock).run

    def take(self, lease_s: float) -> Delivery | None:
        """The delivery that is due, for the taker alone during `lease_s`; None if none is."""
        found = self._run("take_delivery", lease_ms=round(lease_s * 1000))
        return _delivery(found[0].decode(), fields_of(found[1])) if found else None

    def settle(self, delivery: Delivery, attempt: Attempt, retry_s: float | None) -> None:
        """Note how it went; it is due again after `retry_s`, or never. Who was too slow is not heard."""
        self._run(
            "settle_delivery",
            id=delivery.id,
            attempt=delivery.attempt,
            job=delivery.job.id,
            entry=attempt.model_dump(exclude_none=True),
            retry_ms=None if retry_s is None else round(retry_s * 1000),
        )

    def log(self, job_id: str) -> list[Attempt]:
        """Every attempt for this job, the first one first."""
        with redis_reached():
            entries = self._redis.lrange(f"longcat:deliveries:{job_id}", 0, -1)
        return [_attempt(json.loads(entry)) for entry in entries]


def _delivery(delivery_id: str, fields: dict[str, str]) -> Delivery:
    record = {name: str(value) for name, value in json.loads(fields["record"]).items()}
    return Delivery(
        id=delivery_id,
        event=fields["event"],  # type: ignore[arg-type] # one of those that the scripts know
        at=_time(fields["at_ms"]),
        attempt=int(fields["attempt"]),
        job=Job.from_hash(record),
    )


def _attempt(entry: dict[str, str | int]) -> Attempt:
    times = {"at": entry.pop("at_ms"), "next_at": entry.pop("next_ms", None)}
    return Attempt(**entry, **{name: _time(time) for name, time in present(times).items()})


def _time(milliseconds: object) -> datetime:
    return datetime.fromtimestamp(int(str(milliseconds)) / 1000, UTC)
