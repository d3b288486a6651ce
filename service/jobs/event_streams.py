"""The event streams that are open in this process: how many there may be, and which have news.

One poll asks for the changes of all watched jobs, in threads that no other request waits for, so a stream
that waits costs neither a thread nor a command of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
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

_THREADS = 4
_RETRY_S = 5

T = TypeVar("T")


@dataclass(eq=False)
class EventStream:
    """A client that watches a job. `seen` is the id of the last event that was read for it."""

    owner: str
    job_id: str
    seen: str
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, timeout_s: float) -> None:
        """Wait for news, or for the time to pass."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.woken.wait(), timeout_s)
        self.woken.clear()


class EventStreams:
    """All open streams of one app. Used on the event loop alone."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._open: set[EventStream] = set()
        self._threads = CapacityLimiter(_THREADS)
        self._poll: asyncio.Task[None] | None = None
        self.is_closing = False

    @contextmanager
    def open(self, owner: str, job_id: str, seen: str) -> Iterator[EventStream]:
        """Register a stream while the context is open. Raise LimitReached."""
        self._check_limits(owner)
        stream = EventStream(owner, job_id, seen)
        self._open.add(stream)
        if self._poll is None:
            self._poll = asyncio.create_task(self._wake_changed())
        try:
            yield stream
        finally:
            self._open.remove(stream)

    def close(self) -> None:
        """Have all streams end: the service is about to."""
        self.is_closing = True
        for stream in self._open:
            stream.woken.set()

    async def run(self, read: Callable[[], T]) -> T:
        """Run a function that waits for Redis in a thread of the streams."""
        return await run_sync(read, limiter=self._threads)

    def _check_limits(self, owner: str) -> None:
        of_owner = sum(stream.owner == owner for stream in self._open)
        for name, count in (("owner_event_streams", of_owner), ("total_event_streams", len(self._open))):
            bound: int | None = getattr(self._settings, name)
            if bound is not None and count >= bound:
                raise LimitReached(name, str(bound), _RETRY_S)

    async def _wake_changed(self) -> None:
        """Wake the streams whose jobs have changed, again and again, until no stream is open."""
        try:
            while self._open:
                seen = [(stream.job_id, stream.seen) for stream in self._open]
                with suppress(Unavailable):  # the streams find out by themselves
                    changed = await self.run(partial(changed_jobs, self._redis, seen))
                    for stream in self._open:
                        if stream.job_id in changed:
                            stream.woken.set()
                await asyncio.sleep(self._settings.event_interval_s)
        finally:
            self._poll = None
