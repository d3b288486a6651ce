"""The event streams that are open in this process: limit their number, and wake those with news.

One poll asks Redis for the changes of all watched jobs, in threads of its own. An idle stream therefore costs
neither a thread nor a Redis command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from redis import Redis

from jobs.errors import LimitReached, Unavailable
from jobs.store.events import changed_jobs
from service.settings import Settings

_NUM_THREADS = 4
_RETRY_AFTER_S = 5

Result = TypeVar("Result")


@dataclass(eq=False)
class EventStream:
    """A client that watches jobs. `last_event_ids` has the last event that was read for each of them."""

    owner: str
    last_event_ids: dict[str, str]
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, timeout_s: float) -> None:
        """Wait until one of the jobs changes, at most `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), timeout_s)
        self.changed.clear()

    def forget(self, job_ids: Iterable[str]) -> None:
        """Stop watching jobs."""
        ended = set(job_ids)
        self.last_event_ids = {
            job_id: event_id for job_id, event_id in self.last_event_ids.items() if job_id not in ended
        }


class EventStreams:
    """All open event streams of one app. Use it on the event loop only."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._open: set[EventStream] = set()
        self._threads = CapacityLimiter(_NUM_THREADS)
        self._poll: asyncio.Task[None] | None = None
        self.is_closing = False

    @contextmanager
    def open(self, owner: str, last_event_ids: Mapping[str, str]) -> Iterator[EventStream]:
        """Register a stream of some jobs while the context is open. Raise LimitReached."""
        self._check_limits(owner, len(last_event_ids))
        stream = EventStream(owner, dict(last_event_ids))
        self._open.add(stream)
        if self._poll is None:
            self._poll = asyncio.create_task(self._poll_changes())
        try:
            yield stream
        finally:
            self._open.remove(stream)

    def close(self) -> None:
        """Make all streams end, before the service shuts down."""
        self.is_closing = True
        for stream in self._open:
            stream.changed.set()

    async def run(self, read: Callable[[], Result]) -> Result:
        """Run a function that talks to Redis in a thread of the streams."""
        return await run_sync(read, limiter=self._threads)

    def _check_limits(self, owner: str, num_jobs: int) -> None:
        """Check that `num_jobs` more jobs may be watched. Raise LimitReached."""
        of_owner = sum(len(stream.last_event_ids) for stream in self._open if stream.owner == owner)
        total = sum(len(stream.last_event_ids) for stream in self._open)
        for name, count in (("owner_event_streams", of_owner), ("total_event_streams", total)):
            limit: int | None = getattr(self._settings, name)
            if limit is not None and count + num_jobs > limit:
                raise LimitReached(name, str(limit), _RETRY_AFTER_S)

    async def _poll_changes(self) -> None:
        """Wake the streams with jobs that have changed, until no stream is open."""
        try:
            while self._open:
                seen = [pair for stream in self._open for pair in stream.last_event_ids.items()]
                with suppress(Unavailable):  # each stream meets the outage itself when it reads its job
                    changed = await self.run(partial(changed_jobs, self._redis, seen))
                    for stream in self._open:
                        if not changed.isdisjoint(stream.last_event_ids):
                            stream.changed.set()
                await asyncio.sleep(self._settings.event_interval_s)
        finally:
            self._poll = None
