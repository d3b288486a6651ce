"""Record the outcome of a claimed job: store its video, fail it, confirm its cancel, or requeue it.

Every job is finalized in a thread of its own, so that an unavailable Redis or storage delays neither the GPU
group nor another job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from jobs.errors import DeadlineExceeded, DiskFull, LeaseLost, LongCatError, Unavailable
from jobs.logs import about, names_of
from jobs.maintenance import remove_due_files
from jobs.queue import TicketQueue
from jobs.record import ENDED, JobError, Status
from jobs.storage.base import Storage
from jobs.store.job_store import JobStore
from worker.messages import VideoFile
from worker.supervisor.checkpoints import CheckpointUploader, report_late_file
from worker.supervisor.job import (
    ClaimedJob,
    Completed,
    Failed,
    Outcome,
    Requeued,
    Stopped,
    as_job_error,
)
from worker.supervisor.retry import JobInterrupted, retry_while_unavailable
from worker.supervisor.spool import PendingUpload, Spool
from worker.supervisor.upload import Uploader

logger = logging.getLogger(__name__)

FLUSH_LIMIT_S = 5.0  # for the last checkpoint of a job that is requeued


class CancelRequested(Exception):
    """The client cancelled the job before its video was stored."""


class Finalizer:
    """Finalize jobs. `on_finalized` is called in the job's thread when nothing remains to be done for it."""

    def __init__(  # noqa: PLR0913 - parts, all by name
        self,
        *,
        job_store: JobStore,
        tickets: TicketQueue,
        storage: Storage,
        spool: Spool,
        checkpoints: CheckpointUploader,
        upload_limit_s: float,
        on_finalized: Callable[[ClaimedJob], None],
    ) -> None:
        self._job_store = job_store
        self._tickets = tickets
        self._storage = storage
        self._spool = spool
        self._checkpoints = checkpoints
        self._on_finalized = on_finalized
        self._threads: list[threading.Thread] = []
        self._uploads_interrupted = threading.Event()
        self._stopping = threading.Event()
        self._uploader = Uploader(storage, upload_limit_s, self._stopping)

    def start(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Start to finalize this job."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(
            target=self._finalize, args=(job, outcome), name=f"finalize-{job.job_id}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def interrupt_uploads(self) -> None:
        """Requeue jobs whose video cannot be stored at the first attempt. The video stays in the spool."""
        self._uploads_interrupted.set()

    def stop(self) -> None:
        """Give up whatever waits for Redis or the storage. Leases of such jobs expire."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for all threads, for `timeout_s` at most. Return whether they have ended."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _finalize(self, job: ClaimedJob, outcome: Outcome) -> None:
        with about(names_of(job.lease.job)):
            try:
                self._record(job, outcome)
            except LeaseLost:
                self._on_lease_lost(job)
            except JobInterrupted:
                logger.warning("job %s is not finalized: the supervisor stops", job.job_id)
            except Exception:
                logger.exception("job %s cannot be finalized; its lease will expire", job.job_id)
            finally:
                job.timeline.finish(None)  # unless the status was recorded
                self._on_finalized(job)

    def _record(self, job: ClaimedJob, outcome: Outcome) -> None:
        match outcome:
            case Completed(video):
                self._store(job, video)
            case Failed(error) if error.code == DiskFull.code and self._spool.is_unwritable:
                # This worker claims nothing until its disk can be written: the job runs elsewhere or later.
                logger.warning("job %s is requeued: %s", job.job_id, error.message)
                self._requeue(job, crashed=False)
            case Failed(error):
                self._fail(job, error)
            case Stopped("cancel"):
                self._confirm_cancel(job)
            case Stopped("deadline"):
                self._fail(job, as_job_error(DeadlineExceeded("the job ran longer than it may")))
            case Stopped("lease_lost"):
                raise LeaseLost("another worker holds the job, or it has ended")
            case Stopped("preempt" | "drain" | "resize"):
                self._requeue(job, crashed=False)
            case Requeued(crashed, reason):
                self._requeue(job, crashed=crashed, reason=reason)

    def _store(self, job: ClaimedJob, video: VideoFile) -> None:
        self._note_pending_upload(job, video)
        try:
            self._check_wanted(job)
            job.progress = job.progress.model_copy(
                update={"phase": "upload", "step": 0, "num_steps": 0, "eta_s": None}
            )
            job.timeline.enter_phase(job.progress)
            check = partial(self._check_upload, job)
            retry_while_unavailable(partial(self._begin_upload, job), check, self._stopping)
            result = self._uploader.upload(job, video, check)
        except LeaseLost:
            raise
        except CancelRequested:
            self._confirm_cancel(job)
        except JobInterrupted:
            self._requeue(job, crashed=False)
        except (LongCatError, OSError) as error:
            self._fail(job, as_job_error(error))
        else:
            self._commit(job, lambda: self._job_store.holder.succeed(job.lease, result, job.timings_s))

    def _note_pending_upload(self, job: ClaimedJob, video: VideoFile) -> None:
        """Have the next supervisor upload the video if this one dies. A failure is only logged."""
        pending = PendingUpload(fence=job.lease.fence, video=video, timings_s=job.timings_s)
        try:
            self._spool.write_pending_upload(job.job_id, pending)
        except OSError:
            logger.exception("the video of job %s would be made again if this supervisor died", job.job_id)

    def _begin_upload(self, job: ClaimedJob) -> None:
        self._job_store.holder.begin_upload(job.lease)
        self._job_store.holder.renew_lease(job.lease, job.progress)

    def _check_wanted(self, job: ClaimedJob) -> None:
        """Raise LeaseLost or CancelRequested if nobody wants the video. Its deadline does not matter here."""
        job.check_lease()
        if job.stop_request == "cancel":
            raise CancelRequested

    def _check_upload(self, job: ClaimedJob) -> None:
        self._check_wanted(job)
        if self._uploads_interrupted.is_set():
            raise JobInterrupted

    def _fail(self, job: ClaimedJob, error: JobError) -> None:
        self._commit(job, lambda: self._job_store.holder.fail(job.lease, error, job.timings_s))

    def _confirm_cancel(self, job: ClaimedJob) -> None:
        def confirm() -> Status:
            self._job_store.holder.confirm_cancel(job.lease)
            return "cancelled"

        self._commit(job, confirm)

    def _requeue(self, job: ClaimedJob, *, crashed: bool, reason: str | None = None) -> None:
        self._checkpoints.flush(job, FLUSH_LIMIT_S)
        requeue = partial(self._job_store.holder.requeue, job.lease, crashed=crashed, reason=reason)
        status = self._commit(job, requeue)
        if status == "queued":
            with suppress(Unavailable):  # then the next sweep delivers the ticket
                self._tickets.enqueue(job.job_id, job.lease.job.requirement or "")

    def _commit(self, job: ClaimedJob, write: Callable[[], Status]) -> Status:
        """Write the outcome to the job store, and remove the files that its new status does not need."""
        status = retry_while_unavailable(write, job.check_lease, self._stopping)
        job.timeline.finish(status)
        if status in ENDED:
            self._checkpoints.discard(job, FLUSH_LIMIT_S)
            self._spool.remove(job.job_id)
            with suppress(Unavailable):  # then a later sweep removes them
                remove_due_files(job.job_id, self._job_store, self._storage)
        return status

    def _on_lease_lost(self, job: ClaimedJob) -> None:
        """Have the files that this attempt stored removed once the job has ended."""
        logger.warning("job %s is no longer held here", job.job_id)
        self._checkpoints.discard(job, FLUSH_LIMIT_S)
        report_late_file(self._job_store, job.job_id, self._stopping)
