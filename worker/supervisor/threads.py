"""Run a loop in a thread that can be stopped and joined."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StoppableThread(threading.Thread):
    """A thread whose body returns soon after `stopping` is set.

    Subclasses override `run`; otherwise `body` is called with `stopping`. It is a daemon thread, so that a
    body that is stuck in a system call cannot keep the process from ending.
    """

    def __init__(self, name: str, body: Callable[[threading.Event], object] | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = threading.Event()
        self._body = body

    def run(self) -> None:
        """Call the body until it returns."""
        if self._body is not None:
            self._body(self.stopping)

    def stop(self) -> None:
        """Ask the thread to end. Returns at once; `join` waits for it."""
        self.stopping.set()
