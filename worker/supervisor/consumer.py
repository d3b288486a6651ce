"""Takes a job from the queue when the group can do one: RQ's tickets say that there is one, the claim which.

A thread of the supervisor. It takes no ticket while the group is busy or down, so that another group gets it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from redis import Redis

from jobs.errors import Unavailable
from jobs.queue import TicketQueue, consume
from jobs.store.holder import Lease

logger = logging.getLogger(__name__)

LOOK_S = 0.2


class Consumer:
    """Claims one job each time that it is asked. `took` is called in the thread, with the claim."""

    def __init__(
        self, redis: Redis, claim: Callable[[], Lease | None], took: Callable[[Lease], None]
    ) -> None:
        self._redis = redis
        self._claim = claim
        self._took = took
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="intake", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Get a job, as soon as there is one."""
        self._asked.set()

    def withdraw(self) -> None:
        """None is wanted any more; one that is just being claimed may come all the same."""
        self._asked.clear()

    def stop(self) -> None:
        """Take nothing any more; a claim at hand still comes."""
        self._stopped.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing can come any more."""
        return not self._thread.is_alive()

    def _work(self) -> None:
        self._wait()
        consume(self._redis, self._on_ticket, self._stopped.is_set)

    def _on_ticket(self) -> None:
        if not self._wait():
            with suppress(Unavailable):  # then a sweep makes up for it
                TicketQueue(self._redis).enqueue("passed-on")
            return
        claim = self._claim()
        if claim is not None:
            self._asked.clear()
            self._took(claim)
            self._wait()

    def _wait(self) -> bool:
        """Wait to be asked; false once there is no more to take."""
        while not self._stopped.is_set():
            if self._asked.wait(LOOK_S):
                return True
        return False
