"""Repeat work in a thread while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object], pause_s: float = 0.0) -> Iterator[None]:
    """Call `work` again and again, `pause_s` apart, while the context is open."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(pause_s):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
