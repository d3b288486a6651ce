"""Fetch what a claimed job needs before it can run: its input files and its latest checkpoint."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import PurePath

from jobs.errors import DiskFull, InvalidInput, KeyMissing, LongCatError, Unavailable, UnreadableRecord
from jobs.logs import about, names_of
from jobs.storage.base import Storage
from jobs.store.job_store import JobStore
from worker.messages import JOB_ERROR, Checkpoint, RunJob
from worker.supervisor.checkpoints import damaged_file, fetch_checkpoint, stored_checkpoint
from worker.supervisor.disk_space import DiskSpace
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
from worker.supervisor.spool import Spool, log_unreadable

logger = logging.getLogger(__name__)

MISSING_LIMIT_S = 10.0
"""How long a file may be missing: some stores show a file seconds after it was stored."""


class InputFetcher:
    """Fetch files for as long as it takes, in the thread of the caller.

    A job that cannot be fetched because a disk takes no files is requeued: nothing is wrong with it, and
    `disk_space` keeps the group from claiming another. A file that is still missing after `missing_limit_s`
    is gone. `report` is called for each checkpoint that cannot be read.
    """

    def __init__(
        self,
        job_store: JobStore,
        storage: Storage,
        spool: Spool,
        disk_space: DiskSpace,
        report: Callable[[UnreadableRecord], None] = log_unreadable,
        missing_limit_s: float = MISSING_LIMIT_S,
    ) -> None:
        self._job_store = job_store
        self._storage = storage
        self._spool = spool
        self._disk_space = disk_space
        self._report = report
        self._missing_limit_s = missing_limit_s
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Requeue jobs whose files cannot be fetched at the first attempt from now on."""
        self._stopping.set()

    def fetch(self, job: ClaimedJob) -> RunJob | Outcome:
        """Return the message that starts the job, or its outcome if it cannot or need not run.

        Nothing is raised, since nobody else would end the job: its lease is renewed until it has an outcome.
        """
        with about(names_of(job.lease.job)):
            try:
                folder = self._spool.make_job_folder(job.job_id)
                (folder / JOB_ERROR).unlink(missing_ok=True)  # of an earlier attempt
                return self._fetch(job)
            except JobInterrupted:
                return Stopped(job.stop_request) if job.stop_request else Requeued(crashed=False)
            except (LongCatError, OSError) as error:
                logger.exception("the inputs of job %s cannot be fetched", job.job_id)
                if isinstance(error, DiskFull | OSError) and not self._disk_space.check():
                    return Requeued(crashed=False)
                return Failed(as_job_error(error))
            except Exception:
                logger.exception("the inputs of job %s cannot be fetched, which uses an attempt", job.job_id)
                return Requeued(crashed=True)

    def _fetch(self, job: ClaimedJob) -> RunJob | Completed:
        if pending := self._spool.pending_upload(job.job_id):
            job.timings_s = pending.timings_s
            return Completed(pending.video)
        began = time.monotonic()
        with job.timeline.measure("fetch", "job"):
            resume = self._fetch_checkpoint(job)  # first: it may clear the job's folder
            job.progress = job.progress.model_copy(update={"fraction": resume.fraction if resume else 0.0})
            inputs = self._fetch_inputs(job)
            self._warn_of_other_weights(job)
        timings_s = dict(resume.timings_s) if resume else {}
        timings_s["load"] = timings_s.get("load", 0.0) + time.monotonic() - began
        return RunJob(
            job_id=job.job_id,
            order=job.lease.job.order,
            folder=job.folder,
            inputs=inputs,
            resume=resume,
            timings_s=timings_s,
            log_context=names_of(job.lease.job),
            deadline_at=job.lease.job.deadline_at,
            priority=job.lease.job.priority,
        )

    def _check(self, job: ClaimedJob) -> None:
        """Raise JobInterrupted if the job is to stop, or if the disk of this worker takes no files."""
        if job.stop_request or not self._disk_space.check():
            raise JobInterrupted

    def _fetch_inputs(self, job: ClaimedJob) -> dict[str, str]:
        names = {}
        for field, file in job.lease.job.order.inputs_by_field.items():
            names[field] = name = f"{field}{PurePath(file.key).suffix}"
            if (job.folder / name).exists():
                continue
            try:
                self._retry(partial(self._storage.fetch, file.key, job.folder / name), job)
            except KeyMissing as error:
                raise InvalidInput("the file is no longer in storage", field) from error
        return names

    def _fetch_checkpoint(self, job: ClaimedJob) -> Checkpoint | None:
        """Return the later one of this machine's own checkpoint and the one in storage, if it is intact."""
        local = self._spool.checkpoint(job.job_id)
        stored = stored_checkpoint(job.lease.checkpoint, self._report)
        if any(each and not self._can_resume(job, each) for each in (local, stored)):
            # The files of both may have equal names, so neither is used.
            self._begin_again(job, "its saved state was computed with other weights")
            return None
        if local and self._is_damaged(local, job):
            self._clear_folder(job)
            local = None
        job.checkpoint = stored
        if stored is None or (local and local.position >= stored.position):
            return local
        try:
            self._retry(partial(fetch_checkpoint, stored, job, self._storage), job)
        except KeyMissing as error:
            logger.warning("job %s starts without its stored checkpoint: %s", job.job_id, error)
            job.checkpoint = None
            return local
        if self._is_damaged(stored, job):
            self._begin_again(job, "its saved state was damaged")
            return None
        return stored

    def _begin_again(self, job: ClaimedJob, reason: str) -> None:
        """Forget all that was saved of the job, and tell its client why."""
        self._clear_folder(job)
        forget = partial(self._job_store.holder.save_checkpoint, job.lease, {})
        retry_while_unavailable(forget, partial(self._check, job), self._stopping)
        job.checkpoint = None
        self._warn(job, f"the job began again: {reason}")

    def _clear_folder(self, job: ClaimedJob) -> None:
        self._spool.remove(job.job_id)
        self._spool.make_job_folder(job.job_id)

    def _is_damaged(self, checkpoint: Checkpoint, job: ClaimedJob) -> bool:
        name = damaged_file(checkpoint, job.folder)
        if name is not None:
            self._report(UnreadableRecord(f"{job.folder / name} is damaged"))
        return name is not None

    def _retry(self, fetch: Callable[[], None], job: ClaimedJob) -> None:
        """Repeat `fetch` while the storage is unavailable or lacks a file.

        Raises KeyMissing, JobInterrupted.
        """
        gives_up_at = time.monotonic() + self._missing_limit_s

        def fetch_if_shown() -> None:
            try:
                fetch()
            except KeyMissing as error:
                if time.monotonic() >= gives_up_at:
                    raise
                raise Unavailable(f"{error.message}, perhaps not yet") from error

        retry_while_unavailable(fetch_if_shown, partial(self._check, job), self._stopping)

    def _can_resume(self, job: ClaimedJob, checkpoint: Checkpoint) -> bool:
        """Return whether the group has the weights and the data type that computed the checkpoint."""
        capability = job.lease.capability
        if capability is None:
            return True
        weights = capability.weights_for(job.lease.job.order.plan)
        return (checkpoint.weights, checkpoint.dtype) == (weights, capability.dtype)

    def _warn_of_other_weights(self, job: ClaimedJob) -> None:
        """Warn the client if the video will be made with other weights than the service expected."""
        capability, order = job.lease.capability, job.lease.job.order
        if capability and order.weights and capability.weights_for(order.plan) != order.weights:
            self._warn(job, f"the weights of {capability.model} changed after the job was accepted")

    def _warn(self, job: ClaimedJob, warning: str) -> None:
        logger.warning("job %s: %s", job.job_id, warning)
        add_warning = partial(self._job_store.holder.add_warning, job.lease, warning)
        retry_while_unavailable(add_warning, partial(self._check, job), self._stopping)
