"""Read the GPU time that owners have used, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    Days on which an owner used nothing are left out. All days are read in one round trip, after another one
    for the names of all owners. `clock` replaces Redis's, in ms.
    """
    with redis_reached():
        now_s = clock() / 1000 if clock else redis.time()[0]
        today = datetime.fromtimestamp(now_s, UTC).date()
        days = [today - timedelta(days=ago) for ago in range(NUM_DAYS)]
        owners = _owners(redis, days) if owner is None else [[owner]] * NUM_DAYS
        # No transaction: Redis refuses even those that only read, while it is full.
        with redis.pipeline(transaction=False) as pipeline:
            for day, names in zip(days, owners, strict=True):
                for name in names:
                    pipeline.hget(_key(day), name)
                    pipeline.hget(f"{_key(day)}:lost", name)
                    pipeline.hgetall(f"{_key(day)}:cost:{name}")
            replies = iter(pipeline.execute())
    pairs = [(day, name) for day, names in zip(days, owners, strict=True) for name in names]
    return [
        Usage(day, name, float(gpu_ms) / 1000, float(lost_ms or 0) / 1000, _by_currency(costs))
        for (day, name), gpu_ms, lost_ms, costs in zip(pairs, replies, replies, replies, strict=True)
        if gpu_ms is not None
    ]


def _owners(redis: Redis, days: Sequence[date]) -> list[list[str]]:
    """Return the owners who used something on each of these days, in the order of their names."""
    with redis.pipeline(transaction=False) as pipeline:
        for day in days:
            pipeline.hkeys(_key(day))
        return [sorted(map(text, names)) for names in pipeline.execute()]


def _key(day: date) -> str:
    return f"longcat:usage:{(day - _EPOCH).days}"


def _by_currency(amounts: Mapping[bytes, bytes]) -> dict[str, float]:
    return {currency: round(float(amount), 6) for currency, amount in decoded(amounts.items()).items()}
