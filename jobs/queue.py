"""Delivery by RQ: a ticket says that there is work; which job it is, the claim decides.

So a ticket may be lost (the sweep delivers another), delivered twice or left over (whoever takes it finds
nothing to claim), and never carries a job's fate. It lives for milliseconds in the hands of RQ's worker; the
job itself runs after that, under its lease.

The service delivers, the worker's supervisor consumes. Nothing in a ticket is ever executed: it is JSON, and
a class that allows one function name is all that reads it.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

from redis import Redis
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from jobs.connect import redis_reached
from jobs.errors import Unavailable

logger = logging.getLogger(__name__)

QUEUE_NAME = "longcat"
TICKET = "jobs.queue.ticket"
WORKER_TTL_S = 20
TICKET_TIMEOUT_S = 60
FAILED_TICKET_S = 60
WAIT_S = 1
PAUSE_S = 1.0
_TICKET_FIELDS = {
    *("data", "origin", "status", "description", "timeout", "result_ttl", "failure_ttl", "worker_name"),
    *("created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat"),
}


def ticket(job_id: str) -> None:
    """What RQ is asked to execute: nothing. `job_id` tells a reader why the ticket was delivered."""


class Ticket(RQJob):
    """The only kind of RQ job that is read here: `ticket`, with no callback, webhook or dependency."""

    def restore(self, raw_data: dict[bytes, bytes]) -> None:
        """Read the hash in Redis, or drop it and tell RQ that there is no such job."""
        if not _is_ticket(raw_data):
            logger.warning("dropped RQ job %s: it is no ticket", self.id)
            self.connection.delete(self.key)
            raise NoSuchJobError(f"{self.id} is no ticket")
        super().restore(raw_data)

    @property
    def func(self) -> Callable[[str], None]:
        """Never looked up by name."""
        return ticket


class _NoDeathPenalty(BaseDeathPenalty):
    """RQ's time limit works by signals, which a thread cannot have and a ticket does not need."""

    def setup_death_penalty(self) -> None:
        """Nothing is armed."""

    def cancel_death_penalty(self) -> None:
        """Nothing is disarmed."""


class TicketQueue:
    """Where tickets wait."""

    def __init__(self, redis: Redis) -> None:
        self._queue = Queue(
            QUEUE_NAME,
            connection=redis,
            job_class=Ticket,
            serializer=JSONSerializer,
            death_penalty_class=_NoDeathPenalty,
        )

    def deliver(self, job_id: str) -> None:
        """Tell one worker that there is work. Raises Unavailable; the sweep will make up for it."""
        with redis_reached():
            self._queue.enqueue_call(
                TICKET,
                args=(job_id,),
                timeout=TICKET_TIMEOUT_S,
                result_ttl=0,
                failure_ttl=FAILED_TICKET_S,
            )

    def count(self) -> int:
        """How many tickets wait."""
        with redis_reached():
            return int(self._queue.count)

    def top_up(self, num_awaited: int) -> int:
        """Deliver as many tickets as are missing to so many; gives how many those were."""
        missing = max(0, num_awaited - self.count())
        for _ in range(missing):
            self.deliver("swept")
        return missing


class TicketWorker(SimpleWorker):
    """RQ's worker in this process and thread: no fork (CUDA forbids it), no signals, no remote commands.

    Its own loop `work` is not used: that one quits when Redis is away.
    """

    death_penalty_class = _NoDeathPenalty

    def __init__(self, redis: Redis) -> None:
        super().__init__(
            QUEUE_NAME, connection=redis, job_class=Ticket, serializer=JSONSerializer, worker_ttl=WORKER_TTL_S
        )

    def procline(self, message: str) -> None:
        """Keep the title of the process. RQ replaces it where `setproctitle` happens to be installed."""

    def take(self) -> bool:
        """Wait a second for a ticket and take it; False if none came."""
        if not self.connection.sismember(self.redis_workers_keys, self.key):  # new here, or Redis forgot us
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]
        self.heartbeat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
        try:
            found = self.queue_class.dequeue_any(
                self.queues,
                WAIT_S,
                connection=self.connection,
                job_class=self.job_class,
                serializer=self.serializer,
                death_penalty_class=self.death_penalty_class,
            )
        except DequeueTimeout:
            return False
        assert found is not None  # RQ answers None only where it was told not to wait
        self.execute_job(*found)
        return True


def consume(redis: Redis, on_ticket: Callable[[], None], stop: Callable[[], bool]) -> None:
    """Call `on_ticket` for each ticket, one after the other, until `stop()` is true.

    Redis may go away and come back. What `on_ticket` raises ends this, except Unavailable: the sweep makes up
    for that ticket.
    """
    worker: TicketWorker | None = None
    while not stop():
        try:
            with redis_reached():
                worker = worker or TicketWorker(redis)
                came = worker.take()
            if came:
                on_ticket()
        except Unavailable as error:
            logger.warning("waiting for Redis: %s", error)
            time.sleep(PAUSE_S)
    if worker:
        with suppress(Unavailable), redis_reached():
            worker.register_death()  # type: ignore[no-untyped-call]


def _is_ticket(raw_data: dict[bytes, bytes]) -> bool:
    fields = {name.decode() for name, value in raw_data.items() if value}
    return fields <= _TICKET_FIELDS and _call(raw_data.get(b"data", b"")) == TICKET


def _call(data: bytes) -> str | None:
    """The function that RQ's data names, None if it is anything but a plain call in JSON."""
    try:
        name, instance, _, _ = json.loads(zlib.decompress(data))
    except (zlib.error, ValueError, TypeError):
        return None
    return name if instance is None else None
