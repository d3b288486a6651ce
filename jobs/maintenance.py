"""Run maintenance while a process lives: sweep the job store, and remove files that no job needs.

Every API and worker process does both, each in a thread of its own: sweeping is quick, removing files waits
for the storage. Any number of processes may do so at the same time: one of them sweeps for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Event

from jobs.errors import JobNotFound, LongCatError, Unavailable, UnreadableRecord
from jobs.queue import TicketQueue
from jobs.record import Job
from jobs.storage.base import Storage
from jobs.storage.keys import input_key, job_of, job_prefix
from jobs.store.job_store import JobStore
from jobs.store.maintenance import FileRemoval, SweepResult

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 1.0
REMOVE_EVERY_S = 10.0


def sweep(job_store: JobStore, tickets: TicketQueue) -> SweepResult:
    """Handle leases, deadlines and retentions that ran out, and replace lost tickets. Raises Unavailable.

    Does nothing if another process swept a moment ago.
    """
    swept = job_store.maintenance.sweep()
    if swept.by_other:
        return swept
    for requirement, num_needed in job_store.maintenance.num_tickets_needed().items():
        tickets.top_up(num_needed, requirement)
    return swept


def remove_files(job_store: JobStore, storage: Storage) -> int:
    """Remove unneeded files of finished and deleted jobs. Return the number of jobs. Raises Unavailable.

    Each job comes up twice: at once, and again when no upload can arrive in the storage any longer. Of
    several processes, one removes the files of a job.
    """
    num_jobs = 0
    while removal := job_store.maintenance.lease_file_removal():
        _remove_leased(removal, job_store, storage)
        num_jobs += 1
    return num_jobs


def remove_due_files(job_id: str, job_store: JobStore, storage: Storage) -> None:
    """Remove unneeded files of a job that just ended or was deleted, unless another process does.

    Raises Unavailable.
    """
    if removal := job_store.maintenance.lease_file_removal(job_id):
        _remove_leased(removal, job_store, storage)


def remove_files_of(job_id: str, job_store: JobStore, storage: Storage) -> None:
    """Remove all files of a deleted job; of a finished one, all but its inputs and its result.

    Raises UnreadableRecord, Unavailable.
    """
    try:
        needed = _needed_prefixes(job_store.client.get(job_id))
    except JobNotFound:
        needed = ()
    storage.delete_prefix(job_prefix(job_id), needed)


def _remove_leased(removal: FileRemoval, job_store: JobStore, storage: Storage) -> None:
    try:
        remove_files_of(removal.job_id, job_store, storage)
    except UnreadableRecord as error:  # its files are removed when the record expires
        logger.error("keeping all files of a job: %s", error)  # noqa: TRY400 - the message says it all
    except BaseException:
        with suppress(Unavailable):  # then the lease runs out
            job_store.maintenance.release_file_removal(removal)
        raise
    # Confirm last: if this process dies before, another one repeats the removal.
    job_store.maintenance.confirm_file_removal(removal)


def orphans(job_store: JobStore, storage: Storage) -> Iterator[str]:
    """Yield storage keys that belong to no job. There are none unless Redis lost data.

    This is exact while jobs come and go, because an id is reserved before its first file is stored.
    """
    for key in storage.keys("jobs/"):
        job_id = job_of(key)
        if job_id is not None and not job_store.maintenance.owns_files(job_id):
            yield key


def keep_sweeping(
    job_store: JobStore, tickets: TicketQueue, stop: Event, every_s: float = SWEEP_EVERY_S
) -> None:
    """Sweep until `stop` is set."""
    _repeat(lambda: sweep(job_store, tickets), every_s, stop)


def keep_removing(
    job_store: JobStore, storage: Storage, stop: Event, every_s: float = REMOVE_EVERY_S
) -> None:
    """Remove files of finished and deleted jobs until `stop` is set."""
    _repeat(lambda: remove_files(job_store, storage), every_s, stop)


def _needed_prefixes(job: Job) -> tuple[str, ...]:
    """Return the prefixes of an ended job's inputs and of its result."""
    assert job.ended
    result = (_prefix_of(job.result.video_key),) if job.result else ()
    return (_prefix_of(input_key(job.id, "any")), *result)


def _prefix_of(key: str) -> str:
    return f"{key.rpartition('/')[0]}/"


def _repeat(action: Callable[[], object], every_s: float, stop: Event) -> None:
    while not stop.is_set():
        try:
            action()
        except LongCatError as error:
            logger.warning("maintenance is postponed: %s", error)
        except Exception:
            logger.exception("maintenance failed; the next round tries again")
        stop.wait(every_s)
