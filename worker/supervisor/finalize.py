"""The end of a job in this supervisor's hands: its film is stored and committed, or it failed, or goes back.

Each job is closed in a thread of its own, so neither Redis nor the storage being away holds up the group or
another job. The job_store decides, also what of the job is of use in the storage.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from jobs.errors import DeadlineExceeded, LeaseLost, LongCatError, Unavailable
from jobs.logs import about, names_of
from jobs.maintenance import remove_files_of
from jobs.queue import TicketQueue
from jobs.record import ENDED, JobError, Status
from jobs.storage.base import Storage
from jobs.store.job_store import JobStore
from worker.messages import VideoFile
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.job import (
    Abandoned,
    ClaimedJob,
    Completed,
    Ending,
    Errored,
    Interrupted,
    Requeued,
    as_job_error,
)
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.spool import Spool, Waiting
from worker.supervisor.upload import Upload

logger = logging.getLogger(__name__)

FLUSH_S = 5.0  # how long a job that goes back waits for its last state to be stored


@dataclass(frozen=True)
class Places:
    """Where jobs are recorded, delivered and kept."""

    job_store: JobStore
    tickets: TicketQueue
    storage: Storage
    spool: Spool
    saves: CheckpointUploader


class Finalizer:
    """Closes jobs; `over` is called, in the job's thread, when nothing of it remains to be done."""

    def __init__(self, places: Places, upload_limit_s: float, over: Callable[[ClaimedJob], None]) -> None:
        self._job_store, self._tickets = places.job_store, places.tickets
        self._storage, self._spool, self._saves = places.storage, places.spool, places.saves
        self._upload = Upload(places.storage, upload_limit_s)
        self._over = over
        self._hurried = threading.Event()

    def close(self, held: ClaimedJob, ending: Ending) -> None:
        """Begin to close this job."""
        threading.Thread(target=self._close, args=(held, ending), name="closing", daemon=True).start()

    def hurry(self) -> None:
        """From now on a film that cannot be stored at once goes back to the queue; it stays in the spool."""
        self._hurried.set()

    def _close(self, held: ClaimedJob, ending: Ending) -> None:
        with about(names_of(held.claim.job)):
            self._close_named(held, ending)

    def _close_named(self, held: ClaimedJob, ending: Ending) -> None:
        try:
            self._end(held, ending)
        except LeaseLost:
            self._lost(held)
        except Exception:
            logger.exception("job %s could not be closed; its lease runs out", held.job_id)
        finally:
            held.stages.end(None)  # unless it was said how
            self._over(held)

    def _end(self, held: ClaimedJob, ending: Ending) -> None:
        match ending:
            case Completed(film):
                self._store(held, film)
            case Errored(error):
                self._fail(held, error)
            case Abandoned("cancel"):
                self._cancelled(held)
            case Abandoned("deadline"):
                self._fail(held, as_job_error(DeadlineExceeded("the job ran longer than it may")))
            case Abandoned("lease_lost"):
                raise LeaseLost("another group has the job")
            case Abandoned("drain"):
                self._give_back(held, crashed=False)
            case Requeued(crashed):
                self._give_back(held, crashed=crashed)

    def _store(self, held: ClaimedJob, film: VideoFile) -> None:
        waiting = Waiting(fence=held.claim.fence, film=film, timings_s=held.timings_s)
        try:
            self._spool.keep_film(held.job_id, waiting)
            self._check(held)
            held.progress = held.progress.model_copy(
                update={"phase": "upload", "step": 0, "num_steps": 0, "eta_s": None}
            )
            held.stages.enter(held.progress)
            retry_while_unavailable(lambda: self._begin_upload(held), lambda: self._check_again(held))
            result = self._upload.store(held, film, lambda: self._check_again(held))
        except LeaseLost:
            raise
        except Interrupted:
            self._interrupted(held)
        except (LongCatError, OSError) as error:
            self._fail(held, as_job_error(error))
        else:
            self._commit(held, lambda: self._job_store.holder.succeed(held.claim, result, held.timings_s))

    def _begin_upload(self, held: ClaimedJob) -> None:
        self._job_store.holder.begin_upload(held.claim)
        self._job_store.holder.renew_lease(held.claim, held.progress)

    def _check(self, held: ClaimedJob) -> None:
        """Whether the film is still wanted from here. A deadline no longer counts: the film is there."""
        if held.verdict == "lease_lost":
            raise LeaseLost("another group has the job")
        if held.verdict == "cancel":
            raise Interrupted

    def _check_again(self, held: ClaimedJob) -> None:
        self._check(held)
        if self._hurried.is_set():
            raise Interrupted

    def _interrupted(self, held: ClaimedJob) -> None:
        if held.verdict == "cancel":
            self._cancelled(held)
        else:
            self._give_back(held, crashed=False)

    def _fail(self, held: ClaimedJob, error: JobError) -> None:
        self._commit(held, lambda: self._job_store.holder.fail(held.claim, error, held.timings_s))

    def _cancelled(self, held: ClaimedJob) -> None:
        def acknowledge() -> Status:
            self._job_store.holder.confirm_cancel(held.claim)
            return "cancelled"

        self._commit(held, acknowledge)

    def _give_back(self, held: ClaimedJob, *, crashed: bool) -> None:
        self._saves.flush(held, FLUSH_S)
        status = self._commit(held, lambda: self._job_store.holder.requeue(held.claim, crashed=crashed))
        if status == "queued":
            with suppress(Unavailable):  # then a sweep delivers it
                self._tickets.enqueue(held.job_id)

    def _commit(self, held: ClaimedJob, write: Callable[[], Status]) -> Status:
        """Have the job_store write the last word, and remove what the state it gives has no need of."""
        status = retry_while_unavailable(write, held.check_lease)
        held.stages.end(status)
        if status in ENDED:
            self._saves.forget(held, FLUSH_S)
            self._spool.remove(held.job_id)
            with suppress(Unavailable):  # then a sweep does it
                remove_files_of(held.job_id, self._job_store, self._storage)
        return status

    def _lost(self, held: ClaimedJob) -> None:
        """Somebody else has the job, or it is gone: what was stored here is removed behind its end."""
        logger.warning("job %s is no longer held here", held.job_id)
        self._saves.forget(held, FLUSH_S)
        retry_while_unavailable(lambda: self._job_store.maintenance.report_late_file(held.job_id))
