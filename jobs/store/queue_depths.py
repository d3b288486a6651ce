"""Read what waits in the queue, for metrics and autoscaling.

The records are read in pipelines of a few hundred, not in a script: a long queue must not block Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis, ResponseError

from jobs.connect import redis_reached
from jobs.order import PRIORITIES
from jobs.store.estimates import Run
from jobs.store.scripts import text

_BATCH = 500
_MAX_DIGITS = 15  # as in the scripts
_FIELDS = (
    *("owner", "task", "requirement", "work_units"),
    *("queued_ms", "created_ms", "owner_running_jobs", "total_running_jobs"),
)


@dataclass(frozen=True)
class WaitingJob:
    """A queued job.

    Attributes:
        requirement: what a group needs to run it (`jobs.requirement`), empty if it is not known.
        waited_s: the time since it was queued last, so without the time that it ran.
        is_held: a limit on running jobs keeps it from starting, even if a group is free.
    """

    task: str
    priority: str
    requirement: str
    work_units: int
    waited_s: float
    is_held: bool


def waiting_jobs(redis: Redis, clock: Callable[[], int] | None = None) -> list[WaitingJob]:
    """Return all queued jobs. `clock` replaces Redis's, in ms. Raises Unavailable."""
    with redis_reached():
        seconds, microseconds = redis.time()
        now_ms = clock() if clock else seconds * 1000 + microseconds // 1000
        records = [
            {**record, "priority": priority}
            for priority in PRIORITIES
            for record in _records(redis, [text(i) for i in redis.zrange(f"longcat:queue:{priority}", 0, -1)])
        ]
        num_running = _num_running(redis, {record["owner"] for record in records})
    return [_waiting_job(record, now_ms, num_running) for record in records]


def recent_runs(redis: Redis) -> list[Run]:
    """Return runs of jobs that succeeded, the latest first. Raises Unavailable."""
    with redis_reached():
        entries: Any = redis.lrange("longcat:recent_runs", 0, -1)
    return [run for entry in entries if (run := Run.from_entry(entry))]


def _records(redis: Redis, ids: list[str]) -> Iterator[dict[str, str]]:
    """Yield the fields of each job whose record can be read."""
    for start in range(0, len(ids), _BATCH):
        pipeline = redis.pipeline(transaction=False)
        for job_id in ids[start : start + _BATCH]:
            pipeline.hmget(f"longcat:job:{job_id}", _FIELDS)
        for values in pipeline.execute(raise_on_error=False):
            if not isinstance(values, ResponseError) and any(value is not None for value in values):
                yield {
                    name: (value or b"").decode(errors="replace")
                    for name, value in zip(_FIELDS, values, strict=True)
                }


def _num_running(redis: Redis, owners: set[str]) -> dict[str | None, int]:
    """Return the number of running jobs of each owner, and under None that of all."""
    names = sorted(owners)
    pipeline = redis.pipeline(transaction=False)
    pipeline.zcard("longcat:index:running")
    for name in names:
        pipeline.zcard(f"longcat:index:running:{name}")
    total, *counts = pipeline.execute()
    return {None: total, **dict(zip(names, counts, strict=True))}


def _waiting_job(record: dict[str, str], now_ms: int, num_running: dict[str | None, int]) -> WaitingJob:
    limits = {None: "total_running_jobs", record["owner"]: "owner_running_jobs"}
    queued_ms = _whole(record, "queued_ms") or _whole(record, "created_ms") or now_ms
    return WaitingJob(
        task=record["task"],
        priority=record["priority"],
        requirement=record["requirement"],
        work_units=_whole(record, "work_units") or 1,
        waited_s=max(0, now_ms - queued_ms) / 1000,
        is_held=any(
            (limit := _whole(record, name)) is not None and num_running[whose] >= limit
            for whose, name in limits.items()
        ),
    )


def _whole(record: dict[str, str], name: str) -> int | None:
    value = record[name]
    return int(value) if value.isdecimal() and len(value) <= _MAX_DIGITS else None
