"""Shows that a group is alive and what it does, and holds its name: two workers never have the same.

A thread of the supervisor. It also publishes what may be ordered, once the group is up, and clears the spool
of jobs that ended elsewhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis

from jobs.capability import Capability
from jobs.errors import GroupTaken, JobNotFound, Unavailable
from jobs.registration import GroupRegistration, GroupState
from jobs.store.job_store import JobStore
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.spool import Spool

logger = logging.getLogger(__name__)

SHOW_EVERY_S = 2.0
CLEAR_EVERY_S = 30.0
LEAVING_S = 5.0


@dataclass(frozen=True)
class Shown:
    """What is told of a group."""

    state: GroupState = "starting"
    job_id: str | None = None
    capability: Capability | None = None


class Heartbeat:
    """Tells of one group, now and then and when something changes. `taken` is called if its name is lost."""

    def __init__(self, seat: GroupRegistration, redis: Redis, ranks: int, taken: Callable[[], None]) -> None:
        self._seat = seat
        self._redis = redis
        self._ranks = ranks
        self._taken = taken
        self._shown = Shown()
        self._published: Capability | None = None
        self._changed = threading.Event()
        self._left = False
        self._thread = threading.Thread(target=self._work, name="presence", daemon=True)

    def start(self) -> None:
        """Tell from now on."""
        self._thread.start()

    def show(self, shown: Shown) -> None:
        """Tell this from now on."""
        if shown != self._shown:
            self._shown = shown
            self._changed.set()

    def leave(self) -> None:
        """Give up the name; while Redis is away that is left to time."""
        self._left = True
        self._changed.set()
        self._thread.join(LEAVING_S)
        with suppress(Unavailable):
            self._seat.release()

    def _work(self) -> None:
        while not self._left:
            self._changed.clear()
            try:
                self._tell(self._shown)
            except Unavailable as error:
                logger.warning("nobody hears of this group: %s", error)
            except GroupTaken:
                logger.exception("this group has to end")
                self._taken()
                return
            self._changed.wait(SHOW_EVERY_S)

    def _tell(self, shown: Shown) -> None:
        if shown.capability and shown.capability != self._published:
            shown.capability.publish(self._redis)
            self._published = shown.capability
        self._seat.heartbeat(shown.state, self._ranks, shown.job_id)


def keep_spool_clear(spool: Spool, job_store: JobStore, keeper: LeaseRenewer, stop: threading.Event) -> None:
    """Remove files of jobs that ended elsewhere, now and then until `stop` is set; a thread's body."""
    while not stop.is_set():
        with suppress(Unavailable):
            clear_spool(spool, job_store, keeper)
        stop.wait(CLEAR_EVERY_S)


def clear_spool(spool: Spool, job_store: JobStore, keeper: LeaseRenewer) -> None:
    """Remove files of jobs that ended, wherever that was. Raises Unavailable."""
    for job_id in spool.job_ids:
        if not keeper.keeps(job_id) and _has_ended(job_id, job_store):
            spool.remove(job_id)


def _has_ended(job_id: str, job_store: JobStore) -> bool:
    try:
        return job_store.client.get(job_id).ended
    except JobNotFound:
        return True
