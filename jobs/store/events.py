"""Which of many jobs have changed: one question for all event streams of a process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import Redis

from jobs.connect import redis_reached


def changed_jobs(redis: Redis, seen: Iterable[tuple[str, str]]) -> set[str]:
    """Return the jobs that have events after those `seen`, given as pairs of job and event id.

    Raise Unavailable.
    """
    after: dict[str, str] = {}
    for job_id, event_id in sorted(seen, key=lambda pair: _order(pair[1]), reverse=True):
        after[_key(job_id)] = event_id  # of a job that is given twice, the older event counts
    if not after:
        return set()
    with redis_reached():
        streams: Any = redis.xread(after, count=1)  # type: ignore[arg-type] # a dict of str is one
    return {key.decode().removeprefix(_key("")) for key, _ in streams}


def _key(job_id: str) -> str:
    return f"longcat:events:{job_id}"


def _order(event_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in event_id.split("-"))
