"""Make a pool of groups known to services, without a worker."""

from __future__ import annotations

from redis import Redis

from jobs.capability import Capability
from jobs.registration import POOLS_KEY, GroupRegistration


def set_only_pool(redis: Redis, capability: Capability) -> None:
    """Remember a pool with this capability, whose last group has just gone, instead of all others."""
    redis.delete(POOLS_KEY)
    group = GroupRegistration(redis, "gone")
    group.heartbeat("starting", 1, capability=capability)
    group.release()
