"""Limit what requests use at a time, in total and for each owner.

A request that finds no free capacity is refused immediately. It waits only for a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self, TypeVar

from anyio import CapacityLimiter, to_thread

from jobs.errors import LimitReached
from service.errors import Busy
from service.settings import Settings

Result = TypeVar("Result")

_RETRY_AFTER_S = 5
_NUM_PARSER_THREADS = 2
_NUM_READINESS_THREADS = 2
_NUM_SEARCH_THREADS = 2


@dataclass
class Capacity:
    """An amount that requests share. Used on the event loop only, so it needs no lock."""

    name: str
    total: int
    per_owner: int
    _used: Counter[str] = field(default_factory=Counter)

    @property
    def used(self) -> int:
        """Return how much all requests use together."""
        return self._used.total()

    @contextmanager
    def share(self, owner: str) -> Iterator[Share]:
        """Open a share for a request of this owner. What it took is released when the context ends."""
        share = Share(self, owner)
        try:
            yield share
        finally:
            self._release(owner, share.amount)

    def take(self, owner: str, amount: int) -> None:
        """Raise LimitReached if the owner would use too much, Busy if all requests together would."""
        if self._used[owner] + amount > self.per_owner:
            raise LimitReached(f"owner_{self.name}", f"{self.per_owner} at a time", _RETRY_AFTER_S)
        if self.used + amount > self.total:
            raise Busy(f"total_{self.name}: at most {self.total} at a time; try again soon")
        self._used[owner] += amount

    def _release(self, owner: str, amount: int) -> None:
        self._used[owner] -= amount
        if self._used[owner] == 0:
            del self._used[owner]  # otherwise the counter would keep every owner for ever


@dataclass
class Share:
    """The part of a capacity that one request uses."""

    capacity: Capacity
    owner: str
    amount: int = 0

    def take(self, amount: int) -> None:
        """Use more. Raise LimitReached, Busy."""
        self.capacity.take(self.owner, amount)
        self.amount += amount


@dataclass(frozen=True)
class Capacities:
    """All capacities of one process."""

    input_orders: Capacity
    open_bodies: Capacity
    body_memory: Capacity
    input_threads: CapacityLimiter
    parser_threads: CapacityLimiter
    readiness_threads: CapacityLimiter
    search_threads: CapacityLimiter

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Create the capacities that the settings name."""
        largest = settings.max_json_bytes  # one such body must fit, whatever the memory settings say
        memory = settings.total_body_memory_bytes
        return cls(
            Capacity("input_orders", settings.total_input_orders, settings.owner_input_orders),
            Capacity("open_bodies", settings.total_open_bodies, settings.owner_open_bodies),
            Capacity("body_memory_bytes", max(memory, largest), max(memory // 2, largest)),
            CapacityLimiter(settings.total_input_orders),
            CapacityLimiter(_NUM_PARSER_THREADS),
            CapacityLimiter(_NUM_READINESS_THREADS),
            CapacityLimiter(_NUM_SEARCH_THREADS),
        )

    async def run_with_inputs(self, owner: str, work: Callable[[], Result]) -> Result:
        """Run work that fetches and decodes inputs in its own threads. Raise LimitReached, Busy.

        These threads may wait a minute for a slow host. Other requests never wait for them.
        """
        with self.input_orders.share(owner) as share:
            share.take(1)
            return await to_thread.run_sync(work, limiter=self.input_threads)

    async def parse(self, work: Callable[[], Result]) -> Result:
        """Run work that parses a body outside the event loop."""
        return await to_thread.run_sync(work, limiter=self.parser_threads)

    async def search(self, work: Callable[[], Result]) -> Result:
        """Run a search through many texts. Few run at a time, so that they leave time to other requests."""
        return await to_thread.run_sync(work, limiter=self.search_threads)
