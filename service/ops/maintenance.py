"""Run the maintenance of jobs in threads of the service, every few seconds.

It queues jobs of dead supervisors again, replaces lost queue tickets, and removes files of jobs that are
gone. Any number of processes may do this at the same time. Removing files has its own thread: a storage that
does not answer must not delay the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

from jobs.errors import Unavailable, UnfitServer
from jobs.maintenance import keep_removing, keep_sweeping
from jobs.store.keys_version import check_redis
from service.backend import Backend

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 2.0  # a storage that does not answer may delay the end of the service this long


class Maintenance:
    """Threads that run while the context is open.

    `is_checked` says whether `check_redis` has passed. If it has not, because Redis could not be reached,
    nothing is done until it passes, and `fail` is called if the server turns out to be unfit.
    """

    def __init__(self, backend: Backend, *, is_checked: bool, fail: Callable[[], None]) -> None:
        self._backend = backend
        self._fail = fail
        self._stopped = Event()
        self._checked = Event()
        if is_checked:
            self._checked.set()
        self._threads = [
            Thread(target=self._sweep, name="sweep", daemon=True),
            Thread(target=self._remove_files, name="remove-files", daemon=True),
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._checked.set()
        for thread in self._threads:
            thread.join(SHUTDOWN_TIMEOUT_S)

    def _sweep(self) -> None:
        every_s = self._backend.settings.sweep_interval_s
        try:
            while not self._checked.is_set():
                with suppress(Unavailable):
                    check_redis(self._backend.redis, self._backend.settings.redis_wait_replicas)
                    self._checked.set()
                self._stopped.wait(every_s)
        except UnfitServer as error:
            logger.critical("the service ends: %s", error.message)
            self._fail()
            return
        keep_sweeping(self._backend.job_store, self._backend.tickets, self._stopped, every_s)

    def _remove_files(self) -> None:
        self._checked.wait()
        every_s = self._backend.settings.sweep_interval_s
        keep_removing(self._backend.job_store, self._backend.storage, self._stopped, every_s)
