"""A thread in which the leader's slow work is done, in order, while the GPUs go on: encoding, saving.

One for each job. What waits is bounded in bytes, so that memory does not grow with the length of a film.
Where cores are few, its work makes way for that which GPUs wait for.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

Task = Callable[[], None]

NICENESS = 10


class BackgroundWriter:
    """Does tasks one after the other until it is closed. After one has failed it does no more of them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._tasks: deque[tuple[Task, int]] = deque()
        self._waiting_bytes = 0
        self._change = threading.Condition()
        self._closed = False
        self._error: Exception | None = None
        threading.Thread(target=self._work, name="backroom", daemon=True).start()

    def submit(self, task: Task, size_bytes: int = 0) -> None:
        """Have it done after all before it. Blocks while too much waits."""
        with self._change:
            self._change.wait_for(lambda: self._error or not self._tasks or self._fits(size_bytes))
            if not self._error:
                self._tasks.append((task, size_bytes))
                self._waiting_bytes += size_bytes
                self._change.notify_all()

    def check(self) -> None:
        """Raise what a task raised, if one did."""
        if self._error:
            raise self._error

    def close(self, then: Callable[[Exception | None], None], *, at_once: bool = False) -> None:
        """Call `then` in the thread when all is done (or `at_once`), with the error if there was one."""
        with self._change:
            if at_once:
                self._tasks.clear()
            self._then, self._closed = then, True
            self._change.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        return self._waiting_bytes + size_bytes <= self._limit_bytes

    def _work(self) -> None:
        os.nice(NICENESS)  # on Linux that of this thread, and of those that x264 starts from it
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - it ends the job, where `check` or `close` says so
                self._fail(error)
        self._then(self._error)

    def _next(self) -> Task | None:
        with self._change:
            self._change.wait_for(lambda: self._tasks or self._closed)
            if not self._tasks:
                return None
            task, size_bytes = self._tasks.popleft()
            self._waiting_bytes -= size_bytes
            self._change.notify_all()
            return task

    def _fail(self, error: Exception) -> None:
        with self._change:
            self._error = error
            self._tasks.clear()
            self._change.notify_all()
