"""Tidying up behind the jobs, every few seconds, in threads of the service.

Any number of processes may do this at the same time. A dead supervisor's job is queued again here, a
ticket that got lost is delivered again, files of jobs that are gone are removed. A storage that hangs holds
up the last of these alone.
"""

from __future__ import annotations

from threading import Event, Thread

from jobs.maintenance import keep_removing, keep_sweeping
from service.backend import Backend

LEAVING_S = 2.0  # how long a storage that hangs may hold up the end of the service


class Maintenance:
    """The threads, as a context: they run as long as the context is open."""

    def __init__(self, backend: Backend) -> None:
        self._ended = Event()
        every_s = backend.settings.sweep_interval_s
        self._threads = [
            Thread(target=body, args=(backend.job_store, other, self._ended, every_s), name=name, daemon=True)
            for name, body, other in (
                ("sweep", keep_sweeping, backend.tickets),
                ("remove", keep_removing, backend.storage),
            )
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(LEAVING_S)
