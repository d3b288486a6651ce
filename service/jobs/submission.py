"""Turn the body of a request into queued jobs. All routes that create jobs call `submit`.

What happens next: a worker receives a ticket (`jobs.queue`), claims the job (`jobs.store.holder`) and runs it
(`worker.supervisor.supervisor`).

Next on the way of a request: `jobs.store.client`, which stores the job.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from pydantic import ValidationError

from jobs.errors import InvalidInput, InvalidRequest, JobNotFound, Unavailable
from jobs.fleet import Pool
from jobs.logs import about, current_names, names_of
from jobs.order import Order
from jobs.record import WEBHOOK_EVENTS, Job
from jobs.requirement import Requirement
from jobs.storage.keys import new_job_id
from jobs.store.idempotency import KeyReservation
from jobs.store.submission import Submission, Submitted
from service.backend import RequestBackend
from service.errors import PriorityNotAllowed, invalid
from service.inputs.body import FILES, Body
from service.inputs.reader import CheckedInput, InputReader, InputSource, jobs_of
from service.inputs.uploads import upload_folder
from service.jobs.batches import as_batch
from service.jobs.bodies import GenerateRequest
from service.jobs.deadlines import with_prediction
from service.jobs.orders import check_prompts, check_quality, input_warnings, make_order, prompt_warnings
from service.jobs.pools import candidate_pools, check_group_was_seen, expected_weights

logger = logging.getLogger(__name__)


def submit(body: Body, backend: RequestBackend, reservation: KeyReservation | None = None) -> Submitted:
    """Check a request, resolve its options, store its input files and queue its jobs. Return the first.

    If the request has an idempotency key, the job has the id that is reserved for it, and a request with the
    same key may have created it. Nothing is queued if this raises InvalidRequest, PriorityNotAllowed,
    NoCapability (no worker has started yet), NoSuitableGroup, DeadlineTooEarly or Unavailable.
    """
    request = _parse(body)
    if request.priority == "high" and not backend.caller.high_priority_allowed:
        raise PriorityNotAllowed("priority: this API key may not use priority high", "priority")
    backend.memory_guard.check()
    job_id = reservation.job_id if reservation else new_job_id()
    fleet = backend.fleet()
    pools = candidate_pools(fleet, request.model, backend.settings.shares_by_model, job_id)
    limits = pools[0].capability.model_limits
    check_prompts(request, limits)
    if request.webhook_url:
        backend.webhook_url_checker.check(request.webhook_url)
    check_quality(request, backend.settings.step_cache)
    sources = _sources(request, body)
    source_jobs = jobs_of(sources.values(), backend.jobs)
    _check_is_not_refined(request, source_jobs)

    with _checked_inputs(sources, job_id, source_jobs, limits.fps, backend) as files:
        order = _make_order(request, files, pools, backend)
        requirement = Requirement.of(order, [pool.capability for pool in fleet.pools])
        check_group_was_seen(fleet, requirement, backend.settings.queue_without_group_s)
        order = order.model_copy(update={"weights": expected_weights(fleet, order, requirement)})
        warnings = prompt_warnings(order, pools[0].capability.known_words) + input_warnings(order, files)
        first = replace(
            _make_submission(job_id, request, backend, order),
            requirement=requirement,
            key_reservation=reservation,
            warnings=warnings,
        )
        if request.deadline_s is not None:
            prediction = backend.jobs.predict(first, fleet)
            first = with_prediction(first, prediction, refuse_if_late=request.refuse_if_late)
        submissions = as_batch(first, request.num_videos)
        if files:
            backend.jobs.check_quotas(*submissions)
            _store(submissions, files, backend)

    with _unavailable_if_expired():
        submitted = backend.jobs.submit(*submissions)
    with about(names_of(submitted.job)):
        logger.info("queued a job for %s, of %d", backend.caller.owner or "everybody", len(submissions))
    backend.run_after_response(lambda: _enqueue_tickets(submitted.job, backend))
    return submitted


def _parse(body: Body) -> GenerateRequest:
    for name in body.files.keys() & body.values.keys():
        raise InvalidRequest(f"{name}: is given twice", name)
    try:
        return GenerateRequest.model_validate(body.values)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error


def _make_order(
    request: GenerateRequest,
    files: Mapping[str, CheckedInput],
    pools: Sequence[Pool],
    backend: RequestBackend,
) -> Order:
    """Return the order under the limits of the first pool that can run it.

    Raises the InvalidRequest of the first pool if there is none.
    """
    refusals: list[InvalidRequest] = []
    for pool in pools:
        capability = pool.capability
        try:
            order = make_order(request, files, capability, backend.settings.step_cache)
        except InvalidRequest as error:
            refusals.append(error)
            continue
        is_bound = request.model is not None or backend.settings.shares_by_model
        return order.model_copy(update={"model": capability.model if is_bound else None})
    raise refusals[0]


def _make_submission(
    job_id: str, request: GenerateRequest, backend: RequestBackend, order: Order
) -> Submission:
    """Return a job with the order, the options of its request, and the limits and prices of the service."""
    settings = backend.settings
    return Submission(
        id=job_id,
        order=order,
        priority=request.priority,
        owner=backend.caller.owner,
        weight=settings.weight_by_owner.get(backend.caller.owner, 1.0),
        ageing_s=settings.priority_ageing_s,
        deadline_s=request.deadline_s,
        default_deadline_s=settings.default_deadline_s,
        metadata=request.metadata,
        webhook_url=request.webhook_url,
        webhook_events=tuple(request.webhook_events or WEBHOOK_EVENTS),
        max_queue_s=settings.max_queue_s,
        max_run_s=settings.max_run_s,
        gpu_hour_price=settings.gpu_hour_price,
        currency=settings.currency,
        trace=current_names(),
    )


def _check_is_not_refined(request: GenerateRequest, source_jobs: Mapping[str, Job]) -> None:
    """Raise InvalidInput if a refined video of a job is to be refined again, which would only lose detail."""
    if request.task != "refine" or request.video is None or request.video.job is None:
        return
    job = source_jobs.get(request.video.job)
    if job is None or job.result is None:  # the reader of inputs refuses it
        return
    refined = job.order.plan.refinement
    if refined and (request.spatial_refine_only or not refined.spatial_only):
        raise InvalidInput("video.job: its video is refined already", "video.job")


@contextmanager
def _checked_inputs(
    sources: Mapping[str, InputSource],
    job_id: str,
    source_jobs: Mapping[str, Job],
    fps: int,
    backend: RequestBackend,
) -> Iterator[dict[str, CheckedInput]]:
    """Yield the inputs of a job, by field. Their temporary files are removed when the context ends."""
    if not sources:
        yield {}
        return
    with upload_folder(backend.settings.upload_dir) as folder:
        reader = InputReader(
            job_id, folder, backend.settings, backend.sandbox, source_jobs, backend.storage, fps
        )
        yield reader.read_all(sources)


def _sources(request: GenerateRequest, body: Body) -> dict[str, InputSource]:
    """Return where each input file comes from, by field: an upload, or a reference in the body."""
    named = {name: getattr(request, name) for name in FILES if getattr(request, name) is not None}
    return {**named, **body.files}


def _store(
    submissions: Sequence[Submission], files: Mapping[str, CheckedInput], backend: RequestBackend
) -> None:
    """Store input files for the worker. They are removed unless the jobs are submitted in time."""
    job_ids = [submission.id for submission in submissions]
    with _unavailable_if_expired():
        for submission in submissions:
            for field, file in submission.order.inputs_by_field.items():
                backend.jobs.reserve(*job_ids)  # also those whose files are stored already
                backend.storage.put(file.key, files[field].path, file.media_type)


@contextmanager
def _unavailable_if_expired() -> Iterator[None]:
    """Raise Unavailable if the reservation of the job's id expired before the job was submitted."""
    try:
        yield
    except JobNotFound as error:
        raise Unavailable("storing the inputs took too long; try again") from error


def _enqueue_tickets(job: Job, backend: RequestBackend) -> None:
    with suppress(Unavailable):  # the jobs are stored: a sweep enqueues the tickets that are missing
        for job_id in job.batch.job_ids if job.batch else (job.id,):
            backend.tickets.enqueue(job_id, job.requirement or "")
