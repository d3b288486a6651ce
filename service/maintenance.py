"""Tidying up behind the jobs, every few seconds, in a thread of the service.

Any number of processes may do this at the same time. A dead supervisor's job is queued again here, a
ticket that got lost is delivered again, files of jobs that are gone are removed.
"""

from __future__ import annotations

import logging
from threading import Event, Thread

from jobs.errors import Unavailable
from jobs.sweep import remove_files, sweep
from service.backend import Backend

logger = logging.getLogger(__name__)


class Maintenance:
    """The thread, as a context: it runs as long as the context is open."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ended = Event()
        self._thread = Thread(target=self._run, name="maintenance", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._backend.settings.sweep_interval_s):
            try:
                tidy(self._backend)
            except Unavailable as error:
                logger.warning("cannot tidy up now: %s", error.message)
            except Exception:
                logger.exception("tidying up failed")  # this round ends; the next may do better


def tidy(backend: Backend) -> None:
    """Do once what is to be done regularly. Raises Unavailable."""
    sweep(backend.ledger, backend.tickets)
    remove_files(backend.ledger, backend.storage)
