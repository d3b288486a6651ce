"""Taking a request in: from a checked body to a queued job. Called by the routes that create jobs.

What happens next: a worker is handed a ticket (`jobs.queue`), claims the job (`jobs.store.job_store`) and
runs it (`worker.supervisor.supervisor`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO

from pydantic import ValidationError

from jobs.capability import latest
from jobs.errors import InvalidRequest, JobNotFound, Unavailable
from jobs.logs import about, current_names, names_of
from jobs.record import WEBHOOK_EVENTS, Job
from jobs.storage.keys import new_job_id
from jobs.store.idempotency import Hold
from jobs.store.submission import Submission
from model.spec.shapes import Limits
from service.backend import Backend
from service.errors import PriorityNotAllowed, invalid
from service.inputs.body import FILES, Body
from service.inputs.inputs import Given, Input, Intake
from service.inputs.uploads import upload_folder
from service.jobs.bodies import GenerateRequest
from service.jobs.orders import check_capability, check_texts, settle_order, step_cache_for

logger = logging.getLogger(__name__)


def submit(body: Body, backend: Backend, hold: Hold | None = None) -> Job:
    """Check a request, settle it, store its inputs and queue it, under the id of `hold` if it has a key.

    Raises InvalidRequest, PriorityNotAllowed (nothing is queued then), NoCapability before any worker has
    come, Unavailable.
    """
    request = _parsed(body)
    if request.priority == "high" and not backend.may_order_high:
        raise PriorityNotAllowed("priority: this API key may not order with high priority", "priority")
    capability = latest(backend.redis)
    limits = Limits.from_json(capability.limits)
    check_texts(request, limits)
    if request.webhook_url:
        backend.webhook_receivers.check(request.webhook_url)
    step_cache = step_cache_for(request, backend.settings.step_cache)
    job_id = hold.job_id if hold else new_job_id()
    with upload_folder(backend.settings.upload_dir) as folder:
        intake = Intake(job_id, folder, backend.settings, backend.sandbox, limits.fps)
        inputs = intake.take_all(_given(request, body.files))
        order = settle_order(request, inputs, limits, step_cache)
        check_capability(order, capability)
        _store(job_id, inputs.values(), backend)
    return _queue(
        Submission(
            id=job_id,
            order=order,
            priority=request.priority,
            owner=backend.owner,
            metadata=request.metadata,
            webhook_url=request.webhook_url,
            webhook_events=tuple(request.webhook_events or WEBHOOK_EVENTS),
            max_queue_s=backend.settings.max_queue_s,
            max_run_s=backend.settings.max_run_s,
            hold=hold,
            trace=current_names(),
        ),
        backend,
    )


def _parsed(body: Body) -> GenerateRequest:
    for name in body.files.keys() & body.values.keys():
        raise InvalidRequest(f"{name}: is given twice", name)
    try:
        return GenerateRequest.model_validate(body.values)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error


def _given(request: GenerateRequest, files: Mapping[str, BinaryIO]) -> dict[str, Given]:
    sources = {name: getattr(request, name) for name in FILES if getattr(request, name) is not None}
    return {**sources, **files}


@contextmanager
def _in_time() -> Iterator[None]:
    """What the job_store says if the id was given up meanwhile, in words for who sent the request."""
    try:
        yield
    except JobNotFound as error:
        raise Unavailable("storing the inputs took too long; try again") from error


@_in_time()
def _store(job_id: str, inputs: Iterable[Input], backend: Backend) -> None:
    """Put inputs where the worker fetches them; unless the job is submitted they are removed."""
    for taken in inputs:
        backend.job_store.client.reserve(job_id)
        backend.storage.put(taken.file.key, taken.path, taken.file.media_type)


@_in_time()
def _queue(submission: Submission, backend: Backend) -> Job:
    job = backend.job_store.client.submit(submission)
    with about(names_of(job)):
        logger.info("queued a job for %s", job.owner or "everybody")
    backend.afterwards(lambda: _deliver(job.id, backend))
    return job


def _deliver(job_id: str, backend: Backend) -> None:
    with suppress(Unavailable):  # the job is safe: a sweep delivers the ticket that is missing
        backend.tickets.enqueue(job_id)
