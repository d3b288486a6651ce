"""Signal to workers through RQ that there is work. A ticket carries the signal; a claim selects the job.

There is an RQ queue for each requirement of queued jobs, so that a ticket wakes a group that can run the job.
Nothing depends on a single ticket. If one is lost, the sweep enqueues another. If one comes twice, or too
late, its consumer finds no job to claim. RQ's worker is done with a ticket within milliseconds; the job runs
after that, under its lease.

The service enqueues tickets, the worker's supervisor consumes them. Nothing in a ticket is ever executed: it
is JSON, and `Ticket` accepts only the one function name that it knows.

Next on the way of a request: `worker.supervisor.consumer`, which claims the job.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Never

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from jobs.connect import redis_reached
from jobs.errors import Unavailable, UnreadableRecord
from jobs.store.metrics import report_unreadable

logger = logging.getLogger(__name__)

QUEUE_NAME = "longcat"
TICKET = "jobs.queue.ticket"
WORKER_TTL_S = 20
TICKET_TIMEOUT_S = 60
FAILED_TICKET_S = 60
TICKET_TTL_S = 7 * 86400
"""After how many seconds a ticket expires that nobody takes, or whose consumer is killed as it takes it."""
WAIT_S = 1
PAUSE_S = 1.0
_TICKET_FIELDS = {
    *("data", "origin", "status", "description", "timeout", "result_ttl", "failure_ttl", "worker_name"),
    *("created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat"),
}


def ticket(job_id: str) -> None:
    """Do nothing: RQ's jobs name a function. `job_id` is for people who inspect the queue."""


class Ticket(RQJob):
    """The only RQ job that is accepted: a call of `ticket`, without callback, webhook or dependency."""

    def refresh(self) -> None:
        """Read the hash in Redis. If the key is of another type, remove it and raise NoSuchJobError."""
        try:
            super().refresh()  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._drop()

    def restore(self, raw_data: dict[bytes, bytes]) -> None:
        """Read the hash in Redis. If it is no ticket, remove it and raise NoSuchJobError."""
        if not _is_ticket(raw_data):
            self._drop()
        try:
            super().restore(raw_data)
        except (ValueError, TypeError):
            self._drop()

    def _drop(self) -> Never:
        report_unreadable(self.connection, "ticket", UnreadableRecord(f"RQ job {self.id} is not a ticket"))
        self.connection.delete(self.key)
        raise NoSuchJobError(f"{self.id} is not a ticket")

    @property
    def func(self) -> Callable[[str], None]:
        """Return `ticket`, without an import by the name that Redis holds."""
        return ticket


class _NoDeathPenalty(BaseDeathPenalty):
    """No time limit: RQ's uses signals, which only the main thread receives."""

    def setup_death_penalty(self) -> None:
        """Do nothing."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""


class TicketQueue:
    """The queue of tickets. Methods raise Unavailable while Redis cannot be reached."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def enqueue(self, job_id: str, requirement: str = "") -> None:
        """Signal to a group that meets the requirement that there is work.

        If this fails, the next sweep makes up for it.
        """
        with redis_reached(), self._redis.pipeline() as pipeline:
            enqueued = _queue(self._redis, queue_name(requirement)).enqueue_call(
                TICKET,
                args=(job_id,),
                timeout=TICKET_TIMEOUT_S,
                result_ttl=0,
                failure_ttl=FAILED_TICKET_S,
                pipeline=pipeline,
            )
            pipeline.expire(enqueued.key, TICKET_TTL_S)
            pipeline.execute()

    def count(self, requirement: str = "") -> int:
        """Return the number of tickets for this requirement."""
        with redis_reached():
            return int(_queue(self._redis, queue_name(requirement)).count)

    def top_up(self, num_needed: int, requirement: str = "") -> int:
        """Enqueue tickets until there are `num_needed`. Return the number of tickets that were missing."""
        num_missing = max(0, num_needed - self.count(requirement))
        for _ in range(num_missing):
            self.enqueue("swept", requirement)
        return num_missing


def queue_name(requirement: str) -> str:
    """Return the name of the RQ queue with the tickets for this requirement."""
    return f"{QUEUE_NAME}:{requirement}" if requirement else QUEUE_NAME


def _queue(redis: Redis, name: str) -> Queue:
    return Queue(
        name,
        connection=redis,
        job_class=Ticket,
        serializer=JSONSerializer,
        death_penalty_class=_NoDeathPenalty,
    )


class TicketWorker(SimpleWorker):
    """An RQ worker in the calling thread: no fork (CUDA forbids it), no signals, no remote commands.

    `take` replaces RQ's own loop, which ends when Redis is away.
    """

    death_penalty_class = _NoDeathPenalty

    def __init__(self, redis: Redis) -> None:
        super().__init__(
            QUEUE_NAME, connection=redis, job_class=Ticket, serializer=JSONSerializer, worker_ttl=WORKER_TTL_S
        )

    def take(self, requirements: Iterable[str] = ()) -> bool:
        """Wait up to a second for a ticket for one of the requirements, and consume it.

        Return False if none came. Tickets without a requirement are taken, too: they are for any group.
        """
        self.queues = [_queue(self.connection, queue_name(each)) for each in (*requirements, "")]
        # Register if that was not done yet, or if Redis lost its data.
        if not self.connection.sismember(self.redis_workers_keys, self.key):
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
        assert found is not None  # RQ returns None only if it was told not to wait
        self.execute_job(*found)
        return True

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """Remove a ticket instead of executing it: it has delivered its signal.

        RQ would keep records of the execution, with more commands than the claim and the end of the job take.
        """
        with self.connection.pipeline() as pipeline:
            pipeline.delete(job.key)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            pipeline.execute()


def consume(
    redis: Redis,
    on_ticket: Callable[[], None],
    stop: Callable[[], bool],
    requirements: Callable[[], Iterable[str]] = lambda: (),
) -> None:
    """Call `on_ticket` for each ticket, one after the other, until `stop()` returns True.

    `requirements` returns those whose tickets are taken; it is called before each ticket.

    Continues after an outage of Redis, and after an error that Redis replies to a command of the callbacks,
    as when the script of a claim fails: both are logged, and the sweep makes up for the ticket. Any other
    error of the callbacks ends the loop. While Redis is full, RQ cannot deliver tickets, so `on_ticket` is
    called about once a second.
    """
    worker: TicketWorker | None = None
    while not stop():
        try:
            awaited = requirements()
            with redis_reached():
                worker = worker or TicketWorker(redis)
            if _take(worker, awaited):
                on_ticket()
        except Unavailable as error:
            logger.warning("waiting for Redis: %s", error)
            time.sleep(PAUSE_S)
        except ResponseError:
            logger.exception("a claim failed; the next ticket tries again")
            time.sleep(PAUSE_S)
    if worker:
        with suppress(Unavailable), redis_reached():
            worker.register_death()  # type: ignore[no-untyped-call]


def _take(worker: TicketWorker, requirements: Iterable[str]) -> bool:
    """Take a ticket. Return True as well, after a pause, if Redis is full: there may be a job.

    Something in RQ's keys that cannot be read is reported, and passed over after a pause. Raises Unavailable.
    """
    try:
        with redis_reached():
            try:
                return worker.take(requirements)
            except OutOfMemoryError:
                may_have_work = True
    except (ResponseError, ValueError) as error:
        report_unreadable(worker.connection, "ticket", UnreadableRecord(f"something in RQ's keys: {error}"))
        may_have_work = False
    time.sleep(PAUSE_S)
    return may_have_work


def _is_ticket(raw_data: dict[bytes, bytes]) -> bool:
    fields = {name.decode() for name, value in raw_data.items() if value}
    return fields <= _TICKET_FIELDS and _call(raw_data.get(b"data", b"")) == TICKET


def _call(data: bytes) -> str | None:
    """Return the function that RQ's data names, None if it is not a plain call in JSON."""
    try:
        name, instance, _, _ = json.loads(zlib.decompress(data))
    except (zlib.error, ValueError, TypeError):
        return None
    return name if instance is None else None
