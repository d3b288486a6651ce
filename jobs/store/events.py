"""Find which of many jobs have changed, for all event streams of a process at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import Redis

from jobs.connect import redis_reached
from jobs.store.scripts import text

_PREFIX = "longcat:events:"


def changed_jobs(redis: Redis, seen: Iterable[tuple[str, str]]) -> set[str]:
    """Return the jobs that have events after those `seen`, given as pairs of job and event id.

    If a job is given twice, the older event counts. Raises Unavailable.
    """
    after: dict[str, str] = {}
    for job_id, event_id in sorted(seen, key=lambda pair: _sort_key(pair[1]), reverse=True):
        after[_PREFIX + job_id] = event_id
    if not after:
        return set()
    with redis_reached():
        streams: Any = redis.xread(after, count=1)  # type: ignore[arg-type] # a dict of str is one
    return {key.decode().removeprefix(_PREFIX) for key, _ in streams}


def newest_events(redis: Redis, job_ids: Iterable[str]) -> dict[str, str]:
    """Return the id of the newest event of each job that has one, in one round trip. Raises Unavailable."""
    wanted = list(job_ids)
    # No transaction: Redis refuses even those that only read, while it is full.
    with redis_reached(), redis.pipeline(transaction=False) as pipeline:
        for job_id in wanted:
            pipeline.xrevrange(_PREFIX + job_id, count=1)
        entries = pipeline.execute()
    return {job_id: text(newest[0][0]) for job_id, newest in zip(wanted, entries, strict=True) if newest}


def _sort_key(event_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in event_id.split("-"))
