"""Read the GPU time that owners have used, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from redis import Redis

from jobs.connect import redis_reached
from jobs.store.scripts import decoded, text

NUM_DAYS = 31
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Usage:
    """The GPU time, in seconds, of the jobs of an owner that ended on a day in UTC.

    Attributes:
        lost_gpu_s: the part of it whose work was lost, because the job was requeued before it was saved.
        costs: the cost of these jobs by currency, at the price that held when each was submitted.
    """

    day: date
    owner: str
    gpu_s: float
    lost_gpu_s: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)


def usage(redis: Redis, owner: str | None = None, clock: Callable[[], int] | None = None) -> list[Usage]:
    """Return the usage of the last 31 days, the latest first, of one owner or of all. Raises Unavailable.

    Days on which an owner used nothing are left out. `clock` replaces Redis's, in ms.
    """
    with redis_reached():
        now_s = clock() / 1000 if clock else redis.time()[0]
        today = datetime.fromtimestamp(now_s, UTC).date()
        days = [today - timedelta(days=ago) for ago in range(NUM_DAYS)]
        return [each for day in days for each in _usage_of_day(redis, day, owner)]


def _usage_of_day(redis: Redis, day: date, owner: str | None) -> Iterator[Usage]:
    """Yield the usage of one owner, or of all in the order of their names, on a day."""
    key = f"longcat:usage:{(day - _EPOCH).days}"
    owners = [owner] if owner is not None else sorted(map(text, redis.hkeys(key)))
    if not owners:
        return
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hmget(key, owners)
        pipeline.hmget(f"{key}:lost", owners)
        for name in owners:
            pipeline.hgetall(f"{key}:cost:{name}")
        spent, lost, *costs = pipeline.execute()
    for name, gpu_ms, lost_ms, amounts in zip(owners, spent, lost, costs, strict=True):
        if gpu_ms is not None:
            by_currency = {
                currency: round(float(amount), 6) for currency, amount in decoded(amounts.items()).items()
            }
            yield Usage(day, name, float(gpu_ms) / 1000, float(lost_ms or 0) / 1000, by_currency)
