"""Renew the leases of all claimed jobs, and notice when one is to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from jobs.errors import Unavailable
from jobs.record import Progress
from jobs.store.job_store import JobStore
from worker.supervisor.job import ClaimedJob
from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

RENEW_EVERY_S = 0.5  # a cancel is noticed within this


class LeaseRenewer(StoppableThread):
    """Renew leases in a thread of its own, so that neither the GPUs nor an upload can delay it.

    Each renewal also reports the progress, and its reply says whether the job is to stop. A changed reply is
    stored as the job's `stop_request`, and `notify` is called in this thread. While Redis is unavailable
    nothing is known, so jobs continue.
    """

    def __init__(
        self,
        job_store: JobStore,
        notify: Callable[[ClaimedJob], None],
        preempt_after_s: float | None = None,
    ) -> None:
        super().__init__("lease-renewer")
        self._job_store = job_store
        self._notify = notify
        self._preempt_after_s = preempt_after_s
        self._reported: dict[ClaimedJob, Progress | None] = {}  # by job, the progress that Redis has
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def add(self, job: ClaimedJob) -> None:
        """Renew this job's lease from now on."""
        with self._lock:
            self._reported[job] = None
        self._wake.set()

    def remove(self, job: ClaimedJob) -> None:
        """Stop renewing this job's lease."""
        with self._lock:
            self._reported.pop(job, None)

    def holds(self, job_id: str) -> bool:
        """Return whether a lease of this job is being renewed."""
        with self._lock:
            return any(job.job_id == job_id for job in self._reported)

    def stop(self) -> None:
        """Ask the thread to end."""
        super().stop()
        self._wake.set()

    def run(self) -> None:
        """Renew all leases every `RENEW_EVERY_S` until stopped."""
        while not self.stopping.is_set():
            with self._lock:
                jobs = list(self._reported.items())
            for job, reported in jobs:
                self._renew(job, reported)
            self._wake.wait(RENEW_EVERY_S)
            self._wake.clear()

    def _renew(self, job: ClaimedJob, reported: Progress | None) -> None:
        progress = job.progress
        news = None if progress == reported else progress
        try:
            reason = self._job_store.holder.renew_lease(job.lease, news, self._preempt_after_s, job.num_gpus)
        except Unavailable as error:
            logger.warning("the lease of job %s could not be renewed: %s", job.job_id, error)
            return
        with self._lock:
            if job not in self._reported:  # it was finalized meanwhile, which also ends its lease
                return
            self._reported[job] = progress
        if reason != job.stop_request:
            job.stop_request = reason
            self._notify(job)
