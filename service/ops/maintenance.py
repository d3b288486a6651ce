"""Run the maintenance of jobs in threads of the service, every few seconds.

It queues jobs of dead supervisors again, replaces lost queue tickets, and removes files of jobs that are
gone. Any number of processes may do this at the same time. Removing files has its own thread: a storage that
does not answer must not delay the rest.
"""

from __future__ import annotations

from threading import Event, Thread

from jobs.maintenance import keep_removing, keep_sweeping
from service.backend import Backend

SHUTDOWN_TIMEOUT_S = 2.0  # a storage that does not answer may delay the end of the service this long


class Maintenance:
    """Threads that run while the context is open."""

    def __init__(self, backend: Backend) -> None:
        self._stopped = Event()
        every_s = backend.settings.sweep_interval_s
        sweeping = (backend.job_store, backend.tickets, self._stopped, every_s)
        removing = (backend.job_store, backend.storage, self._stopped, every_s)
        self._threads = [
            Thread(target=keep_sweeping, args=sweeping, name="sweep", daemon=True),
            Thread(target=keep_removing, args=removing, name="remove-files", daemon=True),
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(SHUTDOWN_TIMEOUT_S)
