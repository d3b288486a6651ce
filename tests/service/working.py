"""Play the other processes: a worker that ends every job as the test says, and maintenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.maintenance import remove_files, sweep
from jobs.record import Progress
from jobs.store.holder import Lease
from service.backend import Backend, RequestBackend
from service.keys.authentication import EVERYBODY
from tests.background import repeating

HALFWAY = Progress(phase="denoise", step=2, num_steps=4, fraction=0.5, eta_s=0.1)


@contextmanager
def working(worker: Any, end: Callable[[Lease], object]) -> Iterator[None]:
    """Claim jobs, report half of their progress and end them with `end`, while the context is open."""

    def end_next() -> None:
        if claim := worker.job_store.holder.claim("in a thread", lease_s=600.0):
            worker.job_store.holder.renew_lease(claim, HALFWAY)
            end(claim)

    with repeating(end_next, pause_s=0.02):
        yield


def backend_of_request(backend: Backend) -> RequestBackend:
    """Return the backend of a request to a service that requires no keys."""
    return RequestBackend.of(backend, EVERYBODY, lambda: True, lambda task: task())


def tidy(backend: Backend) -> None:
    """Run maintenance once."""
    sweep(backend.job_store, backend.tickets)
    remove_files(backend.job_store, backend.storage)
