"""Read the GPU time that owners have used, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from redis import Redis

from jobs.connect import redis_reached
from jobs.store.scripts import decoded

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
        pipeline = redis.pipeline(transaction=False)
        for day in days:
            for part in ("", ":lost", ":cost"):
                pipeline.hgetall(f"longcat:usage:{(day - _EPOCH).days}{part}")
        found = [decoded(each.items()) for each in pipeline.execute()]
    return [
        Usage(day, name, float(gpu_ms) / 1000, float(lost_ms.get(name, 0)) / 1000, _costs_of(name, costs))
        for day, gpu_ms_by_owner, lost_ms, costs in zip(
            days, found[::3], found[1::3], found[2::3], strict=True
        )
        for name, gpu_ms in sorted(gpu_ms_by_owner.items())
        if owner in {None, name}
    ]


def _costs_of(owner: str, costs: Mapping[str, str]) -> dict[str, float]:
    """Return the costs of an owner by currency, of all costs by `<currency>:<owner>`."""
    split = ((*name.partition(":"), amount) for name, amount in costs.items())
    return {currency: round(float(amount), 6) for currency, _, name, amount in split if name == owner}
