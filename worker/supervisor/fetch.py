"""Fetch what a claimed job needs before it can run: its input files and its latest checkpoint."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import PurePath

from jobs.errors import InvalidInput, KeyMissing, LongCatError, Unavailable, UnreadableRecord
from jobs.logs import about, names_of
from jobs.order import Order
from jobs.storage.base import Storage
from worker.messages import Checkpoint, RunJob
from worker.supervisor.checkpoints import fetch_checkpoint, stored_checkpoint
from worker.supervisor.job import (
    ClaimedJob,
    Completed,
    Failed,
    Outcome,
    Requeued,
    Stopped,
    as_job_error,
)
from worker.supervisor.retry import Interrupted, retry_while_unavailable
from worker.supervisor.spool import Spool, log_unreadable

logger = logging.getLogger(__name__)

MISSING_LIMIT_S = 10.0
"""How long a file may be missing: some stores show a file seconds after it was stored."""


class InputFetcher:
    """Fetch files for as long as it takes, in the thread of the caller.

    A file that is still missing after `missing_limit_s` is gone. `report` is called for each checkpoint that
    cannot be read.
    """

    def __init__(
        self,
        storage: Storage,
        spool: Spool,
        report: Callable[[UnreadableRecord], None] = log_unreadable,
        missing_limit_s: float = MISSING_LIMIT_S,
    ) -> None:
        self._storage = storage
        self._spool = spool
        self._report = report
        self._missing_limit_s = missing_limit_s
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Requeue jobs whose files cannot be fetched at the first attempt from now on."""
        self._stopping.set()

    def fetch(self, job: ClaimedJob) -> RunJob | Outcome:
        """Return the message that starts the job, or its outcome if it cannot or need not run."""
        with about(names_of(job.lease.job)):
            try:
                self._spool.folder(job.job_id)
                return self._fetch(job)
            except Interrupted:
                return Stopped(job.stop_request) if job.stop_request else Requeued(crashed=False)
            except (LongCatError, OSError) as error:
                logger.exception("the inputs of job %s cannot be fetched", job.job_id)
                return Failed(as_job_error(error))

    def _fetch(self, job: ClaimedJob) -> RunJob | Completed:
        if pending := self._spool.pending_upload(job.job_id):
            job.timings_s = pending.timings_s
            return Completed(pending.video)
        began = time.monotonic()
        with job.timeline.measure("fetch", "job"):
            inputs, resume = self._fetch_inputs(job), self._fetch_checkpoint(job)
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
        )

    def _check(self, job: ClaimedJob) -> None:
        if job.stop_request:
            raise Interrupted

    def _fetch_inputs(self, job: ClaimedJob) -> dict[str, str]:
        names = {}
        for field, key in input_keys(job.lease.job.order).items():
            names[field] = name = f"{field}{PurePath(key).suffix}"
            if (job.folder / name).exists():
                continue
            try:
                self._retry(partial(self._storage.fetch, key, job.folder / name), job)
            except KeyMissing as error:
                raise InvalidInput("the file is no longer in storage", field) from error
        return names

    def _fetch_checkpoint(self, job: ClaimedJob) -> Checkpoint | None:
        """Return the later one of this machine's own checkpoint and the one in storage."""
        local = self._spool.checkpoint(job.job_id)
        stored = stored_checkpoint(job.lease.checkpoint, self._report)
        job.checkpoint = stored
        if local and (stored is None or local.position >= stored.position):
            return local
        if stored is None:
            return None
        try:
            self._retry(partial(fetch_checkpoint, stored, job, self._storage), job)
        except KeyMissing as error:
            logger.warning("job %s starts without its stored checkpoint: %s", job.job_id, error)
            job.checkpoint = None
            return local
        return stored

    def _retry(self, fetch: Callable[[], None], job: ClaimedJob) -> None:
        """Repeat `fetch` while the storage is unavailable or lacks a file. Raise KeyMissing, Interrupted."""
        gives_up_at = time.monotonic() + self._missing_limit_s

        def fetch_if_shown() -> None:
            try:
                fetch()
            except KeyMissing as error:
                if time.monotonic() >= gives_up_at:
                    raise
                raise Unavailable(f"{error.message}, perhaps not yet") from error

        retry_while_unavailable(fetch_if_shown, partial(self._check, job), self._stopping)


def input_keys(order: Order) -> dict[str, str]:
    """Return the storage keys of the order's files by field."""
    files = {"image": order.image, "video": order.video, "condition_video": order.condition_video}
    return {field: file.key for field, file in files.items() if file}
