"""Encode the video and save checkpoints in a thread, while the GPUs continue."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

THREAD_NAME = "background-writer"
OnEnd = Callable[[Exception | None], None]

# Where cores are few, the threads that feed the GPUs come first.
NICENESS = 10


class BackgroundWriter:
    """Run the tasks of one job in order, in a thread of its own. After one has failed, run no other.

    `limit_bytes` bounds the memory of the tasks that wait, so that it does not grow with the video. The
    thread ends after `finish` or `abort`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._on_end: OnEnd | None = None
        # Not joined when the rank ends: a rank ends by os._exit or a signal, and its supervisor resumes the
        # job from the last checkpoint. A daemon, so that a failing test cannot keep its process alive.
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def submit(self, task: Callable[[], None], size_bytes: int = 0) -> None:
        """Run a task after all earlier ones. Block while more than `limit_bytes` wait.

        A task that alone exceeds the limit is accepted when no other waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._waiting or self._fits(size_bytes))
            if not self._error:
                self._waiting.append((task, size_bytes))
                self._waiting_bytes += size_bytes
                self._changed.notify_all()

    def raise_if_failed(self) -> None:
        """Raise the exception of a task that failed."""
        if self._error:
            raise self._error

    def finish(self, on_end: OnEnd) -> None:
        """Run all tasks, then call `on_end` in the thread, with the exception of a task that failed."""
        with self._changed:
            self._on_end = on_end
            self._changed.notify_all()

    def abort(self, on_end: OnEnd) -> None:
        """Drop the tasks that wait, and call `on_end` as `finish` does after the one that runs."""
        with self._changed:
            self._drop_waiting()
        self.finish(on_end)

    def _fits(self, size_bytes: int) -> bool:
        return self._waiting_bytes + size_bytes <= self._limit_bytes

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        self._changed.notify_all()

    def _run(self) -> None:
        os.nice(NICENESS)  # Linux: changes this thread alone, and the threads that x264 starts from it
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - ends the job: see `raise_if_failed` and `on_end`
                with self._changed:
                    self._error = error
                    self._drop_waiting()
        assert self._on_end is not None
        self._on_end(self._error)

    def _next(self) -> Callable[[], None] | None:
        """Wait for a task. Return None when there will be no other."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._on_end)
            if not self._waiting:
                return None
            task, size_bytes = self._waiting.popleft()
            self._waiting_bytes -= size_bytes
            self._changed.notify_all()
            return task
