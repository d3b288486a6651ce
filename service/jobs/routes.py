"""Create, list, read, cancel and delete jobs.

The path of `POST /generate`: `service.inputs.body` reads the request, `service.jobs.submission` checks and
queues it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from jobs.errors import JobNotFound, Unavailable
from jobs.maintenance import remove_due_files
from jobs.record import ENDED
from jobs.store.idempotency import KeyReservation
from jobs.store.queue_depths import queue_depths
from jobs.store.submission import Submitted
from service.backend import CurrentBackend, RequestBackend
from service.http.error_handlers import error_responses
from service.inputs.body import Body, receive_generate_body
from service.jobs.idempotency import REPLAYED_HEADER, IdempotencyKey, IdempotentRequest, idempotent
from service.jobs.list_query import ListQuery
from service.jobs.pools import FleetView
from service.jobs.retry import Retry, receive_retry_request
from service.jobs.showing import show, show_all
from service.jobs.submission import submit
from service.jobs.submission_threads import in_submission_threads
from service.jobs.views import BatchView, JobPage, JobView
from service.jobs.waiting import MAX_WAIT_S, wait_for_end

router = APIRouter(tags=["jobs"])

_CREATED: dict[int | str, dict[str, Any]] = {
    202: {
        "headers": {"Location": {"description": "The URL of the job", "schema": {"type": "string"}}}
        | REPLAYED_HEADER
    },
    200: {"model": JobView, "description": "The job has ended within `wait` seconds"},
    **error_responses(400, 403, 408, 409, 413, 415, 422, 503),
}

WaitSeconds = Annotated[
    float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the end of the job.")
]

COUNT_HEADER = "X-Total-Count"
_LISTED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            COUNT_HEADER: {
                "description": "The number of jobs on all pages. Absent with `task` or `text`, and for a "
                "status in a batch: then each job would have to be read.",
                "schema": {"type": "integer"},
            }
        }
    },
    **error_responses(404, 422, 503),
}


@router.post(
    "/generate",
    status_code=202,
    response_description="The job, queued",
    responses=_CREATED,
)
async def generate(
    request: Request,
    backend: CurrentBackend,
    idempotency_key: IdempotencyKey,
    body: Annotated[Body, Depends(receive_generate_body)],
    response: Response,
    wait: WaitSeconds = 0,
) -> JobView:
    """Request a video, as JSON or as a form with the same fields, in which inputs may be files.

    In a form, text fields are plain text, lists of them are repeated, and all other fields are written as in
    JSON. Empty fields count as absent there, except prompts. With `num_videos`, the answer is the first job;
    its `batch` names all of them.
    """
    idempotent_request = IdempotentRequest("/generate", body, idempotency_key)
    return await _create(idempotent_request, body, request, backend, response, wait)


@router.get("/capability", responses=error_responses(503))
def get_capability(backend: CurrentBackend) -> FleetView:
    """Return what can be requested: tasks, LoRAs, sizes, lengths and defaults, and the pools of groups."""
    has_step_cache = backend.settings.step_cache is not None
    return FleetView.of(backend.fleet(), queue_depths(backend.redis), has_step_cache=has_step_cache)


@router.get("/jobs", responses=_LISTED)
async def list_jobs(
    backend: CurrentBackend, query: Annotated[ListQuery, Query()], response: Response
) -> JobPage:
    """List jobs, the newest first.

    With `task` or `text`, a page looks at 1,000 jobs at most. It may have fewer than `limit` jobs, or none,
    although `next` is not null.
    """
    run = backend.capacities.search if query.text else run_in_threadpool
    page, num_jobs = await run(lambda: query.page_and_total(backend))
    if num_jobs is not None:
        response.headers[COUNT_HEADER] = str(num_jobs)
    return page


@router.get("/jobs/{job_id}", responses=error_responses(404, 503))
async def get_job(job_id: str, backend: CurrentBackend) -> JobView:
    """Return a job."""
    # `async`, so that FastAPI validates the response on the event loop instead of in another thread
    return await run_in_threadpool(lambda: show(backend.jobs.get(job_id), backend))


@router.post("/jobs/{job_id}/cancel", responses=error_responses(404, 409, 503))
def cancel_job(job_id: str, backend: CurrentBackend) -> JobView:
    """Cancel a job: a queued one immediately, a running one after its current step.

    Answers 409 if the job has succeeded or failed.
    """
    return show(backend.jobs.cancel(job_id), backend)


@router.post("/batches/{batch_id}/cancel", responses=error_responses(404, 503))
def cancel_batch(batch_id: str, backend: CurrentBackend) -> BatchView:
    """Cancel all jobs of a batch that have not ended, and return all jobs of the batch."""
    return BatchView(jobs=show_all(backend.jobs.cancel_batch(batch_id), backend))


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_description="The new job, queued",
    responses=_CREATED | error_responses(404),
)
async def retry_job(  # noqa: PLR0913, PLR0917 - FastAPI passes them by name
    job_id: str,
    request: Request,
    backend: CurrentBackend,
    idempotency_key: IdempotencyKey,
    retry: Annotated[Retry, Depends(receive_retry_request)],
    response: Response,
    wait: WaitSeconds = 0,
) -> JobView:
    """Request the video of a job again, as a new job: with the same seed, options and inputs.

    A body changes fields of the request; null gives a field its default. Without a body, nothing changes.
    """
    idempotent_request = IdempotentRequest(f"/jobs/{job_id}/retry", retry.changes, idempotency_key)
    return await _create(idempotent_request, retry.body, request, backend, response, wait)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    responses={
        202: {"description": "The job is running: it is being cancelled, and is removed once it has stopped"},
        204: {"description": "The record and the files are removed"},
        **error_responses(404, 503),
    },
)
def delete_job(job_id: str, backend: CurrentBackend) -> Response:
    """Remove a job's record and files. A running job is cancelled first."""
    if not backend.jobs.delete(job_id):
        return Response(status_code=202)
    with suppress(Unavailable):  # maintenance will remove the files
        remove_due_files(job_id, backend.job_store, backend.storage)
    return Response(status_code=204)


async def _create(
    idempotent_request: IdempotentRequest,
    body: Body | None,
    request: Request,
    backend: RequestBackend,
    response: Response,
    wait_s: float,
) -> JobView:
    """Submit a request and wait for the end of its job. Return the job, with its URL in a header."""
    if wait_s:  # the job must start before the response
        backend = backend.without_delay()
    job = await _submit(backend=backend, body=body, idempotent_request=idempotent_request, response=response)
    if wait_s:
        job = await wait_for_end(job, request, backend, wait_s)
        response.status_code = 200 if job.status in ENDED else 202
    return job


@in_submission_threads
def _submit(
    backend: RequestBackend, body: Body | None, idempotent_request: IdempotentRequest, response: Response
) -> JobView:
    """Submit a request, and return its job with the job's URL in a header.

    Raises JobNotFound if there is no body, because the job to request again is gone, and no earlier answer.
    """

    def create(reservation: KeyReservation | None) -> Submitted:
        if body is None:
            raise JobNotFound("no such job")
        return submit(body, backend, reservation)

    job = idempotent(idempotent_request, backend, response, create)
    response.headers["Location"] = f"{backend.settings.public_url.rstrip('/')}/jobs/{job.id}"
    return show(job, backend)
