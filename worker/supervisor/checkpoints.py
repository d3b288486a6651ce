"""Upload checkpoints, so that any GPU group can resume a job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from jobs.errors import LeaseLost, LongCatError, Unavailable, UnreadableRecord
from jobs.storage.base import Storage
from jobs.storage.keys import job_prefix, state_key
from jobs.store.job_store import JobStore
from worker.digest import sha256_of
from worker.messages import Checkpoint
from worker.supervisor.job import ClaimedJob
from worker.supervisor.retry import JobInterrupted, retry_while_unavailable
from worker.supervisor.spool import Spool, log_unreadable
from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 1.0
MEDIA_TYPE = "application/octet-stream"  # nobody but workers reads the files


def stored_checkpoint(
    document: Mapping[str, Any] | None, report: Callable[[UnreadableRecord], None] = log_unreadable
) -> Checkpoint | None:
    """Return the checkpoint that an earlier holder stored in the job's record.

    Return None if there is none, or if this release cannot read it, which is reported.
    """
    try:
        return Checkpoint.model_validate(document) if document else None
    except ValidationError as error:
        report(UnreadableRecord(f"the stored checkpoint: {error}"))
        return None


def fetch_checkpoint(checkpoint: Checkpoint, job: ClaimedJob, storage: Storage) -> None:
    """Download the files of a checkpoint that the job's folder lacks.

    Raises Unavailable, KeyMissing, DiskFull.
    """
    for name in checkpoint.files:
        if not (job.folder / name).exists():
            storage.fetch(_key(job.job_id, name), job.folder / name)


def damaged_file(checkpoint: Checkpoint, folder: Path) -> str | None:
    """Return the name of a file that is not as it was saved, None if there is none. Raises OSError."""
    for name in checkpoint.files:
        if sha256_of(folder / name) != checkpoint.digests.get(name):
            return name
    return None


def report_late_file(job_store: JobStore, job_id: str, stopping: threading.Event) -> None:
    """Have a file removed that this worker stored after it lost the lease, once the job has ended."""
    report = partial(job_store.maintenance.report_late_file, job_id)
    try:
        retry_while_unavailable(report, stopping=stopping)
    except JobInterrupted:
        logger.warning("files of job %s may stay in the storage", job_id)


class CheckpointUploader(StoppableThread):
    """Upload checkpoints in a thread of its own, and store them in the job's record.

    Only the latest checkpoint of a job matters: an earlier one that still waits is replaced. While the
    storage is unavailable the job continues, and this machine has its own copy.
    """

    def __init__(self, job_store: JobStore, storage: Storage, spool: Spool) -> None:
        super().__init__("checkpoint-uploader")
        self._job_store = job_store
        self._storage = storage
        self._spool = spool
        self._pending: dict[ClaimedJob, Checkpoint] = {}
        self._uploading: ClaimedJob | None = None
        self._is_discarded = False  # the one that is being uploaded
        self._changed = threading.Condition()

    def submit(self, job: ClaimedJob, checkpoint: Checkpoint) -> None:
        """Record the checkpoint in the spool now, and upload it soon."""
        with self._changed:
            replaced = [self._pending.pop(job, None), job.failed_checkpoint]
            self._pending[job], job.failed_checkpoint = checkpoint, None
            self._changed.notify_all()
        try:
            self._spool.write_checkpoint(job.job_id, checkpoint)
        except OSError:
            logger.exception("the latest checkpoint of job %s cannot be recorded on disk", job.job_id)
        for earlier in replaced:
            self._remove_replaced(job, earlier, checkpoint)

    def flush(self, job: ClaimedJob, timeout_s: float) -> None:
        """Wait until the latest checkpoint of this job is uploaded, for `timeout_s` at most."""

        def is_uploaded() -> bool:
            will_upload = job in self._pending and not self.stopping.is_set()
            return not will_upload and job is not self._uploading

        with self._changed:
            self._changed.wait_for(is_uploaded, timeout_s)

    def discard(self, job: ClaimedJob, timeout_s: float) -> None:
        """Upload nothing more of this job; wait for what is being uploaded, for `timeout_s` at most."""
        with self._changed:
            self._pending.pop(job, None)
            self._is_discarded |= job is self._uploading
            self._changed.wait_for(lambda: job is not self._uploading, timeout_s)

    def stop(self) -> None:
        """Ask the thread to end after the checkpoint that is being uploaded. Later ones stay on this disk."""
        super().stop()
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        """Upload checkpoints until stopped."""
        while (pending := self._next()) is not None:
            job, checkpoint = pending
            try:
                self._upload(job, checkpoint)
            except Unavailable as error:
                logger.warning("the upload of a checkpoint of job %s is repeated: %s", job.job_id, error)
                self.stopping.wait(RETRY_PAUSE_S)
                self._submit_again(job, checkpoint)
            except LeaseLost:
                logger.info("job %s is no longer held here: its checkpoint is not needed", job.job_id)
                report_late_file(self._job_store, job.job_id, self.stopping)
            except (LongCatError, OSError):
                logger.exception("a checkpoint of job %s cannot be uploaded", job.job_id)
                self._keep_until_replaced(job, checkpoint)
            finally:
                with self._changed:
                    self._uploading = None
                    self._changed.notify_all()

    def _next(self) -> tuple[ClaimedJob, Checkpoint] | None:
        """Wait for a checkpoint. Return None when stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self.stopping.is_set())
            if self.stopping.is_set():
                return None
            self._uploading, self._is_discarded = next(iter(self._pending)), False
            return self._uploading, self._pending.pop(self._uploading)

    def _submit_again(self, job: ClaimedJob, checkpoint: Checkpoint) -> None:
        with self._changed:
            if self._is_discarded:
                return
            latest = self._pending.setdefault(job, checkpoint)
        self._remove_replaced(job, checkpoint, latest)

    def _keep_until_replaced(self, job: ClaimedJob, checkpoint: Checkpoint) -> None:
        """Keep the state of a checkpoint that cannot be uploaded on this disk, if it is the latest."""
        with self._changed:
            latest = self._pending.get(job)
            if latest is None:
                job.failed_checkpoint = checkpoint
        self._remove_replaced(job, checkpoint, latest)

    def _remove_replaced(
        self, job: ClaimedJob, earlier: Checkpoint | None, latest: Checkpoint | None
    ) -> None:
        """Remove the state of an earlier checkpoint from this disk, unless the latest one has it too."""
        if earlier and latest and earlier.state != latest.state:
            self._spool.remove_state(job.job_id, earlier.state)

    def _upload(self, job: ClaimedJob, checkpoint: Checkpoint) -> None:
        before = job.checkpoint
        for name in checkpoint.files:
            if before is None or name not in before.files:
                self._check_lease(job)
                self._storage.put(_key(job.job_id, name), job.folder / name, MEDIA_TYPE)
        self._job_store.holder.save_checkpoint(job.lease, checkpoint.model_dump())
        job.checkpoint = checkpoint
        if before and before.state != checkpoint.state:
            self._storage.delete_prefix(_prefix(job.job_id, before.state))
            self._spool.remove_state(job.job_id, before.state)

    def _check_lease(self, job: ClaimedJob) -> None:
        """Raise LeaseLost before an upload that would arrive after the job's files were removed."""
        if self._job_store.holder.renew_lease(job.lease) == "lease_lost":
            raise LeaseLost("another worker holds the job, or it has ended")


def _key(job_id: str, name: str) -> str:
    """Return the key of a file. Each file has a prefix of its own, so that it can be deleted alone."""
    return state_key(job_id, f"{PurePath(name).stem}/{name}")


def _prefix(job_id: str, name: str) -> str:
    return f"{job_prefix(job_id)}state/{Path(name).stem}/"
