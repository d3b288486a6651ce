"""Renews the leases of all jobs in hand, in a thread of its own, whatever GPUs and uploads do.

The answer to each renewal says whether to go on; where that changes, the supervisor is told. While Redis is
away nothing is known, so everything goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Never

from jobs.errors import Unavailable
from jobs.record import Progress
from jobs.store.job_store import JobStore
from worker.supervisor.job import ClaimedJob

logger = logging.getLogger(__name__)

BEAT_S = 0.5  # a cancel is heard of within this


class LeaseRenewer:
    """Beats for every held job until it is let go."""

    def __init__(
        self, job_store: JobStore, told: Callable[[ClaimedJob], None], preempt_after_s: float | None = None
    ) -> None:
        self._job_store = job_store
        self._told = told
        self._preempt_after_s = preempt_after_s
        self._held: dict[ClaimedJob, Progress | None] = {}  # with the progress that was told last
        self._lock = threading.Lock()
        self._wake = threading.Event()
        threading.Thread(target=self._beat_on, name="keeper", daemon=True).start()

    def keep(self, held: ClaimedJob) -> None:
        """Renew this job's lease from now on."""
        with self._lock:
            self._held[held] = None
        self._wake.set()

    def let_go(self, held: ClaimedJob) -> None:
        """No longer; it has ended, or is somebody else's."""
        with self._lock:
            self._held.pop(held, None)

    def keeps(self, job_id: str) -> bool:
        """Whether this job is in hand."""
        with self._lock:
            return any(held.job_id == job_id for held in self._held)

    def _beat_on(self) -> Never:
        while True:
            self._wake.wait(BEAT_S)
            self._wake.clear()
            with self._lock:
                all_held = list(self._held.items())
            for held, told in all_held:
                self._beat(held, told)

    def _beat(self, held: ClaimedJob, told: Progress | None) -> None:
        progress = held.progress
        try:
            news = None if progress == told else progress
            verdict = self._job_store.holder.renew_lease(held.claim, news, self._preempt_after_s)
        except Unavailable as error:
            logger.warning("job %s goes on without a lease renewed: %s", held.job_id, error)
            return
        with self._lock:
            if held not in self._held:  # it ended meanwhile: the answer is about that
                return
            self._held[held] = progress
        if verdict != held.verdict:
            held.verdict = verdict
            self._told(held)
