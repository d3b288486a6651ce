"""Bounds on what requests hold at a time, in all and for each owner.

A request that finds no capacity left is refused at once: nothing waits here.
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
_NUM_PARSERS = 2
_NUM_READINESS = 2


@dataclass
class Capacity:
    """An amount that requests share. Used on the event loop only, so it needs no lock."""

    name: str
    total: int
    per_owner: int
    _held: Counter[str] = field(default_factory=Counter)

    @property
    def held(self) -> int:
        """Return how much all requests hold together."""
        return self._held.total()

    @contextmanager
    def share(self, owner: str) -> Iterator[Share]:
        """Open a share for a request of this owner; what it took is given back at the end."""
        share = Share(self, owner)
        try:
            yield share
        finally:
            self._give_back(owner, share.amount)

    def take(self, owner: str, amount: int) -> None:
        """Raise LimitReached if the owner would have too much, Busy if all together would."""
        if self._held[owner] + amount > self.per_owner:
            raise LimitReached(f"owner_{self.name}", f"{self.per_owner} at a time", _RETRY_AFTER_S)
        if self.held + amount > self.total:
            raise Busy(f"total_{self.name}: at most {self.total} at a time; try again soon")
        self._held[owner] += amount

    def _give_back(self, owner: str, amount: int) -> None:
        self._held[owner] -= amount
        if self._held[owner] == 0:
            del self._held[owner]  # or the owners of all times would add up


@dataclass
class Share:
    """What one request holds of a capacity."""

    capacity: Capacity
    owner: str
    amount: int = 0

    def take(self, amount: int) -> None:
        """Hold more. Raise LimitReached, Busy."""
        self.capacity.take(self.owner, amount)
        self.amount += amount


@dataclass(frozen=True)
class Capacities:
    """All bounds of one process."""

    input_orders: Capacity
    open_bodies: Capacity
    body_memory: Capacity
    input_threads: CapacityLimiter
    parser_threads: CapacityLimiter
    readiness_threads: CapacityLimiter

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Make the bounds that the settings name."""
        largest = settings.max_json_bytes  # must fit, whatever else the settings say
        memory = settings.total_body_memory_bytes
        return cls(
            Capacity("input_orders", settings.total_input_orders, settings.owner_input_orders),
            Capacity("open_bodies", settings.total_open_bodies, settings.owner_open_bodies),
            Capacity("body_memory_bytes", max(memory, largest), max(memory // 2, largest)),
            CapacityLimiter(settings.total_input_orders),
            CapacityLimiter(_NUM_PARSERS),
            CapacityLimiter(_NUM_READINESS),
        )

    async def run_with_inputs(self, owner: str, work: Callable[[], Result]) -> Result:
        """Run work that fetches and decodes inputs in threads of their own. Raise LimitReached, Busy.

        These threads may wait a minute for a slow host; those of all other requests never do.
        """
        with self.input_orders.share(owner) as share:
            share.take(1)
            return await to_thread.run_sync(work, limiter=self.input_threads)

    async def parse(self, work: Callable[[], Result]) -> Result:
        """Run work that parses a body outside of the event loop."""
        return await to_thread.run_sync(work, limiter=self.parser_threads)
