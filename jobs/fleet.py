"""Read which groups are alive and what they can run.

Groups with equal capabilities are a pool. A pool is remembered after its last group has gone. So jobs for it
can be accepted while its workers restart, and a request that some group can run at another time differs from
one that no group can run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis import Redis

from jobs.capability import Capability, read_capability
from jobs.connect import redis_reached
from jobs.errors import NoCapability, UnreadableRecord
from jobs.registration import (
    FLEET_CHANGED_KEY,
    GROUPS_KEY,
    POOL_KEY,
    POOLS_KEY,
    GroupStatus,
    live_groups,
)
from jobs.requirement import can_run
from jobs.store.metrics import report_unreadable
from jobs.store.scripts import text

MAX_FLEET_AGE_S = 1.0
_SEEN_RESOLUTION_MS = 60_000  # of the last heartbeat of a pool's groups, which come all the time
_CACHED_CAPABILITIES = 64


@dataclass(frozen=True)
class Pool:
    """Groups with equal capabilities.

    Attributes:
        groups: the registered groups.
        away_s: the time since a group was registered, 0 while there is one.
    """

    name: str
    capability: Capability
    groups: tuple[GroupStatus, ...] = ()
    away_s: float = 0.0

    @property
    def groups_up(self) -> tuple[GroupStatus, ...]:
        """Return the groups that work, or will soon: all but the broken ones."""
        return tuple(group for group in self.groups if group.state != "broken")

    @property
    def is_live(self) -> bool:
        """Return whether the pool has a group that is up."""
        return bool(self.groups_up)


@dataclass(frozen=True)
class Fleet:
    """All pools that are known: live ones first, then those that have gone, the most capable first."""

    pools: tuple[Pool, ...]

    @property
    def live(self) -> tuple[Pool, ...]:
        """Return the pools that have a group that is up."""
        return tuple(pool for pool in self.pools if pool.is_live)

    def first(self) -> Pool:
        """Return the most capable live pool, or one that has gone. Raises NoCapability if none is known."""
        if not self.pools:
            raise NoCapability("no worker has said yet what can be made; try again when one is up")
        return self.pools[0]

    def pools_for(self, requirement: str | None) -> tuple[Pool, ...]:
        """Return the live pools that can run jobs with this requirement."""
        return tuple(pool for pool in self.live if can_run(pool.capability, requirement))

    def rivals_of(self, requirement: str, requirements: Iterable[str]) -> list[str]:
        """Return those `requirements` whose jobs some group could run instead of one with `requirement`."""
        pools = self.pools_for(requirement)
        return [
            other
            for other in requirements
            if other == requirement or any(can_run(pool.capability, other) for pool in pools)
        ]


_FleetState = tuple[Any, ...]
"""Differs after groups came, went or changed their pools, and as the time goes on in which a pool is away."""


@dataclass(frozen=True)
class _FleetRead:
    state: _FleetState
    read_at: float
    fleet: Fleet


class FleetReader:
    """Reads the fleet, and keeps the one that it read last. Safe between threads.

    `configured` is the capability of groups that can be started at any time, None if there are none.
    """

    def __init__(self, redis: Redis, configured: Capability | None = None) -> None:
        self._redis = redis
        self._configured = configured
        self._latest: _FleetRead | None = None

    def current(self) -> Fleet:
        """Return the known pools and their groups. Raises Unavailable.

        States of groups may be a second old. Groups whose registration ran out may be there a second longer.
        """
        state = self._state()
        kept = self._kept()
        return kept.fleet if kept and kept.state == state else self._read(state)

    def recent(self) -> Fleet:
        """Return a fleet that may be a second old, without a command if there is one. Raises Unavailable."""
        kept = self._kept()
        return kept.fleet if kept else self._read(self._state())

    def _kept(self) -> _FleetRead | None:
        """Return what was read last, None if that is too old."""
        latest = self._latest
        return latest if latest and time.monotonic() - latest.read_at < MAX_FLEET_AGE_S else None

    def _read(self, state: _FleetState) -> Fleet:
        """Read the fleet after its state, so that a change between the two is found by the next call."""
        read_at = time.monotonic()
        fleet = read_fleet(self._redis, self._configured)
        self._latest = _FleetRead(state, read_at, fleet)
        return fleet

    def _state(self) -> _FleetState:
        with redis_reached(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(FLEET_CHANGED_KEY)
            pipeline.scard(GROUPS_KEY)
            pipeline.zrange(POOLS_KEY, 0, -1, withscores=True)
            *values, pools = pipeline.execute()
        seen = tuple((text(name), seen_ms // _SEEN_RESOLUTION_MS) for name, seen_ms in pools)
        return (*values, seen)


def read_fleet(redis: Redis, configured: Capability | None = None) -> Fleet:
    """Return the known pools and their groups. Raises Unavailable.

    Groups with the capability `configured` can be started at any time: their pool is never away.
    """
    groups = live_groups(redis)
    with redis_reached():
        seen: Any = redis.zrange(POOLS_KEY, 0, -1, withscores=True)
        seconds, _ = redis.time()
        names = [text(name) for name, _ in seen]
        documents = redis.mget([POOL_KEY.format(name) for name in names]) if names else []
    pools = []
    for name, document, (_, seen_ms) in zip(names, documents, seen, strict=True):
        if capability := document and _capability(redis, document):
            members = tuple(group for group in groups if group.pool == name)
            away_s = 0.0 if members else max(0.0, seconds - seen_ms / 1000)
            pools.append(Pool(name, capability, members, away_s))
    if configured and configured.pool not in {pool.name for pool in pools if pool.groups}:
        pools = [pool for pool in pools if pool.name != configured.pool]
        pools.append(Pool(configured.pool, configured))
    return Fleet(tuple(sorted(pools, key=_order)))


def _order(pool: Pool) -> tuple[bool, float, int, int, str]:
    """Return a key by which live pools come first, and the most capable of them before others."""
    size = sum(pool.capability.size_limits.values())
    return not pool.is_live, pool.away_s, -len(pool.capability.loras), -size, pool.name


def _capability(redis: Redis, document: bytes | str) -> Capability | None:
    """Return a published capability, None if it cannot be read, which is counted."""
    try:
        return _parse(document)
    except (ValueError, TypeError, AttributeError) as error:
        report_unreadable(redis, "capability", UnreadableRecord(str(error)))
        return None


@lru_cache(_CACHED_CAPABILITIES)
def _parse(document: bytes | str) -> Capability:
    return read_capability(document)
