"""Refuse new jobs before Redis is full, so that the jobs it has can still end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import Unavailable

_FRESH_S = 1.0  # how long a measurement is used


@dataclass(frozen=True)
class Memory:
    """The memory of Redis. `max_bytes` is its `maxmemory`, 0 if it has no limit."""

    used_bytes: int
    max_bytes: int


def memory(redis: Redis) -> Memory:
    """Return the memory that counts towards `maxmemory`, not the replicas' buffers. Raises Unavailable."""
    with redis_reached():
        found = redis.info("memory")
    used = found["used_memory"] - found.get("mem_not_counted_for_evict", 0)
    return Memory(used, found.get("maxmemory", 0))


class MemoryGuard:
    """Keep the last part of `maxmemory`, `reserve` of it, for the jobs that Redis has already."""

    def __init__(self, redis: Redis, reserve: float) -> None:
        self._redis = redis
        self._reserve = reserve
        self._measured: tuple[float, Memory] | None = None

    def check(self) -> None:
        """Raise Unavailable if Redis has no memory for another job."""
        now = time.monotonic()
        if self._measured is None or now - self._measured[0] > _FRESH_S:
            self._measured = now, memory(self._redis)
        found = self._measured[1]
        if found.max_bytes and found.used_bytes > found.max_bytes * (1 - self._reserve):
            raise Unavailable("Redis is almost full: no new jobs are accepted until older ones are removed")
