"""Read the GPU time that owners have used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from redis import Redis

from jobs.connect import redis_reached
from jobs.store.scripts import text

NUM_DAYS = 31
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Usage:
    """The GPU time, in seconds, of the jobs of an owner that ended on a day in UTC."""

    day: date
    owner: str
    gpu_s: float


def usage(redis: Redis, owner: str | None = None, clock: Callable[[], int] | None = None) -> list[Usage]:
    """Return the usage of the last 31 days, the latest first, of one owner or of all. Raises Unavailable.

    Days on which an owner used nothing are left out. `clock` replaces Redis's, in ms.
    """
    with redis_reached():
        now_s = clock() / 1000 if clock else redis.time()[0]
        today = datetime.fromtimestamp(now_s, UTC).date()
        days = [today - timedelta(days=ago) for ago in range(NUM_DAYS)]
        pipeline = redis.pipeline(transaction=False)
        for day in days:
            pipeline.hgetall(f"longcat:usage:{(day - _EPOCH).days}")
        found = pipeline.execute()
    return [
        Usage(day, name, int(gpu_ms) / 1000)
        for day, by_owner in zip(days, found, strict=True)
        for name, gpu_ms in sorted((text(name), gpu_ms) for name, gpu_ms in by_owner.items())
        if owner in {None, name}
    ]
