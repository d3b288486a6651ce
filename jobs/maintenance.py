"""What keeps the promises when processes die: every API and worker process sweeps, in threads of its own.

Sweeping Redis is quick and goes on whatever the storage does; removing files waits for the storage. Any
number of processes may do both at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Event

from jobs.errors import JobNotFound, LongCatError
from jobs.queue import TicketQueue
from jobs.record import Job
from jobs.storage.base import Storage
from jobs.storage.keys import input_key, job_of, job_prefix
from jobs.store.job_store import JobStore
from jobs.store.maintenance import SweepResult

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 1.0
REMOVE_EVERY_S = 10.0


def sweep(job_store: JobStore, tickets: TicketQueue) -> SweepResult:
    """One round over Redis: leases, deadlines, retention, and tickets that were lost. Raises Unavailable."""
    swept = job_store.maintenance.sweep()
    tickets.top_up(job_store.maintenance.num_tickets_needed())
    return swept


def remove_files(job_store: JobStore, storage: Storage) -> int:
    """Remove files of jobs that ended or are gone; gives how many jobs those were. Raises Unavailable.

    Each comes up twice: at once, and when nothing can be on its way to the storage any more.
    """
    due = job_store.maintenance.due_file_removals()
    for job_id, since in due.items():
        remove_files_of(job_id, job_store, storage)
        job_store.maintenance.confirm_file_removal(
            job_id, since
        )  # only now: until then another does it again
    return len(due)


def remove_files_of(job_id: str, job_store: JobStore, storage: Storage) -> None:
    """Remove all files of a job that is gone, those without use of one that ended. Raises Unavailable."""
    try:
        useful = _useful(job_store.client.get(job_id))
    except JobNotFound:
        useful = ()
    storage.delete_prefix(job_prefix(job_id), useful)


def _useful(job: Job) -> tuple[str, ...]:
    """Where an ended job has its inputs and its result."""
    assert job.ended
    result = (_folder(job.result.video_key),) if job.result else ()
    return (_folder(input_key(job.id, "any")), *result)


def _folder(key: str) -> str:
    return f"{key.rpartition('/')[0]}/"


def orphans(job_store: JobStore, storage: Storage) -> Iterator[str]:
    """Keys in storage that no job accounts for; there are none, unless Redis lost its data.

    Exact while jobs come and go, since an id is reserved before its first file is stored.
    """
    for key in storage.keys("jobs/"):
        job_id = job_of(key)
        if job_id is not None and not job_store.maintenance.owns_files(job_id):
            yield key


def keep_sweeping(
    job_store: JobStore, tickets: TicketQueue, stop: Event, every_s: float = SWEEP_EVERY_S
) -> None:
    """Sweep until `stop` is set; a thread's body."""
    _repeat(lambda: sweep(job_store, tickets), every_s, stop)


def keep_removing(
    job_store: JobStore, storage: Storage, stop: Event, every_s: float = REMOVE_EVERY_S
) -> None:
    """Remove files of jobs that ended or are gone until `stop` is set; a thread's body."""
    _repeat(lambda: remove_files(job_store, storage), every_s, stop)


def _repeat(action: Callable[[], object], every_s: float, stop: Event) -> None:
    while not stop.wait(every_s):
        try:
            action()
        except LongCatError as error:  # Redis or the storage is away: the next round finds what this one left
            logger.warning("sweep put off: %s", error)
        except Exception:
            logger.exception("a round of sweeping failed")  # and ends with that; the next may do better
