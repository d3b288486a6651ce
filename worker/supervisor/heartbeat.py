"""Publish that a group is alive and what it does, and hold its name.

No two workers have the same group name at a time: each would take the other's heartbeat for its own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis

from jobs.capability import Capability
from jobs.errors import GroupTaken, Unavailable
from jobs.registration import GroupRegistration, GroupState
from jobs.store.metrics import count_group_start
from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

PUBLISH_EVERY_S = 2.0


@dataclass(frozen=True)
class PublishedStatus:
    """The published status of a group.

    Attributes:
        job_id: the job that has its GPUs.
        failure: why it failed, until it is ready again.
    """

    state: GroupState = "starting"
    job_id: str | None = None
    capability: Capability | None = None
    failure: str | None = None


class Heartbeat(StoppableThread):
    """Publish a group's status every `PUBLISH_EVERY_S` and when it changes.

    `on_taken` is called in this thread if another worker took the group's name. When the thread ends, it
    gives up the name; if Redis is unavailable then, the name expires.
    """

    def __init__(
        self, registration: GroupRegistration, redis: Redis, ranks: int, on_taken: Callable[[], None]
    ) -> None:
        super().__init__("heartbeat")
        self._registration = registration
        self._redis = redis
        self._ranks = ranks
        self._on_taken = on_taken
        self._status = PublishedStatus()
        self._starts_s: deque[float] = deque()
        self._wake = threading.Event()

    def update(self, status: PublishedStatus) -> None:
        """Publish this status from now on."""
        if status != self._status:
            self._status = status
            self._wake.set()

    def count_start(self, duration_s: float) -> None:
        """Count a start of the group in the metrics of its pool, with the next status that is published."""
        self._starts_s.append(duration_s)
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to give up the name and end."""
        super().stop()
        self._wake.set()

    def run(self) -> None:
        """Publish until stopped or until the name is lost."""
        while not self.stopping.is_set():
            try:
                self._publish(self._status)
            except Unavailable as error:
                logger.warning("the status of this group cannot be published: %s", error)
            except GroupTaken:
                logger.exception("this supervisor stops")
                self._on_taken()
                return
            self._wake.wait(PUBLISH_EVERY_S)
            self._wake.clear()
        with suppress(Unavailable):
            self._registration.release()

    def _publish(self, status: PublishedStatus) -> None:
        self._registration.heartbeat(
            status.state, self._ranks, status.job_id, status.capability, status.failure
        )
        while status.capability and self._starts_s:
            count_group_start(self._redis, status.capability.pool, self._starts_s[0])
            self._starts_s.popleft()
