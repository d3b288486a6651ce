"""Hands that play the other processes: a worker that ends every job as the test says, and a sweep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.record import Progress
from jobs.sweep import remove_files, sweep
from jobs.transitions import Claim
from service.backend import Backend

HALFWAY = Progress(phase="denoise", step=2, num_steps=4, fraction=0.5, eta_s=0.1)


@contextmanager
def working(worker: Any, end: Callable[[Claim], object]) -> Iterator[None]:
    """Jobs are begun, brought halfway and ended with `end`, as long as the context is open."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(0.02):
            if claim := worker.ledger.claim("in a thread", lease_s=600.0):
                worker.ledger.beat(claim, HALFWAY)
                end(claim)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def tidy(backend: Backend) -> None:
    """Do once what every process does again and again."""
    sweep(backend.ledger, backend.tickets)
    remove_files(backend.ledger, backend.storage)
