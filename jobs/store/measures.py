"""What the job_store measured, for who shows it: the same whichever process is asked, and kept over restarts.

The transitions count as they go (`jobs/scripts/measures.lua`). It does not know how numbers are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from redis import Redis

from jobs.connect import redis_reached
from jobs.store.scripts import Scripts

MEASURES = "longcat:measures"


@dataclass
class Measure:
    """One series: a sum, or a distribution if it has `buckets`, how many values lay below each bound.

    The bounds are powers of the square root of 2; a value is counted under the smallest that holds it.
    """

    name: str
    label: str
    sum: float = 0.0
    buckets: dict[float, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    """The jobs of one priority that wait: how many, and how long the first submitted has."""

    priority: str
    num_jobs: int
    oldest_s: float


def measures(redis: Redis) -> list[Measure]:
    """All series, by name and label. Raises Unavailable."""
    with redis_reached():
        stored = redis.hgetall(MEASURES)
    found: dict[tuple[str, str], Measure] = {}
    for path, number in stored.items():
        name, label, part = _text(path).split("|")
        measure = found.setdefault((name, label), Measure(name, label))
        if part == "sum":
            measure.sum = float(number)
        else:
            measure.buckets[2.0 ** (int(part) / 2)] = int(number)
    return [found[key] for key in sorted(found)]


def waiting(redis: Redis, clock: Callable[[], int] | None = None) -> list[Waiting]:
    """The queue by priority, the highest first. Raises Unavailable."""
    found = Scripts(redis, clock).run("queue_depths")
    return [Waiting(priority.decode(), num_jobs, age_ms / 1000) for priority, num_jobs, age_ms in found]


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
