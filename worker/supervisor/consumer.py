"""Claim jobs when the GPU group can run one.

A ticket in RQ's queue says that there is a job; the claim decides which. While the group is busy or down no
ticket is taken, so that another group gets it.

Next on the way of a request: `worker.supervisor.supervisor`, which holds the job and passes it to the ranks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from redis import Redis

from jobs.queue import TicketQueue, consume
from jobs.store.holder import Lease
from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

POLL_S = 0.2
MAX_REMEMBERED = 64


class Consumer(StoppableThread):
    """Claim one job for each request, in a thread of its own.

    `on_claim` is called in this thread with each claim. After `stop`, no further job is claimed; a claim
    that was already made is still passed to `on_claim`. Once the thread has ended, nothing more comes.
    `requirements` returns those of the jobs that the group can run.
    """

    def __init__(
        self,
        redis: Redis,
        claim: Callable[[], Lease | None],
        on_claim: Callable[[Lease], None],
        requirements: Callable[[], Iterable[str]],
    ) -> None:
        super().__init__("consumer")
        self._redis = redis
        self._claim = claim
        self._requirements = requirements
        self._on_claim = on_claim
        self._requested = threading.Event()
        self._remembered: list[str] = []

    def request_claim(self) -> None:
        """Claim a job as soon as there is one."""
        self._requested.set()

    def withdraw_request(self) -> None:
        """Claim no job. One that is being claimed at this moment may still come."""
        self._requested.clear()

    def run(self) -> None:
        """Consume tickets until stopped."""
        self._wait_for_request()
        consume(self._redis, self._on_ticket, self.stopping.is_set, self._awaited_requirements)

    def _awaited_requirements(self) -> Iterable[str]:
        """Return the requirements whose tickets are awaited: those of queued jobs, and the latest before.

        Without the latter, the first job in an empty queue would wait until the next look at the queue.
        """
        latest_first = dict.fromkeys([*self._requirements(), *self._remembered])
        self._remembered = list(latest_first)[:MAX_REMEMBERED]
        return self._remembered

    def _on_ticket(self) -> None:
        if not self._wait_for_request():
            TicketQueue(self._redis).enqueue("passed-on")
            return
        lease = self._claim()
        if lease is not None:
            self._requested.clear()
            self._on_claim(lease)
            self._wait_for_request()

    def _wait_for_request(self) -> bool:
        """Wait until a claim is requested. Return False if the thread was stopped instead."""
        while not self.stopping.is_set():
            if self._requested.wait(POLL_S):
                return True
        return False
