"""Check every few seconds whether the storage answers, so that a scrape of the metrics need not ask it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from jobs.errors import Unavailable
from jobs.storage.base import Storage

MAX_SILENCE_S = 30.0
"""A storage that has not answered for this long is down, whether it fails or hangs."""
_INTERVAL_S = 10.0
_SHUTDOWN_TIMEOUT_S = 2.0  # a storage that does not answer may delay the end of the service this long


class StorageProbe:
    """Knows whether the storage has answered lately, once it runs."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._answered_at = float("-inf")

    @property
    def is_up(self) -> bool:
        """Return whether the storage has answered within the last `MAX_SILENCE_S` seconds."""
        return time.monotonic() - self._answered_at <= MAX_SILENCE_S

    @contextmanager
    def running(self, interval_s: float = _INTERVAL_S) -> Iterator[None]:
        """Check the storage in a thread while the context is open."""
        stopped = Event()
        thread = Thread(target=self._run, args=(stopped, interval_s), name="check-storage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join(_SHUTDOWN_TIMEOUT_S)

    def _run(self, stopped: Event, interval_s: float) -> None:
        while not stopped.is_set():
            with suppress(Unavailable, OSError):  # a network file system raises any OSError
                self._storage.check()
                self._answered_at = time.monotonic()
            stopped.wait(interval_s)
