"""Ordering a video and looking after the job: what a client does first and most.

The way of a request: `service.inputs.body` reads it, `service.jobs.submission` checks and queues it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool

from jobs.capability import Capability, latest
from jobs.errors import Unavailable
from jobs.maintenance import remove_files_of
from jobs.record import Status
from service.backend import Served
from service.errors import documented
from service.http.order_threads import in_order_threads
from service.inputs.body import Body, read_body
from service.jobs.idempotency import REPLAYED_HEADER, Asked, IdempotencyKey, once
from service.jobs.submission import submit
from service.jobs.views import JobPage, JobView

router = APIRouter(tags=["jobs"])

_LOCATION = {"Location": {"description": "Where the job is", "schema": {"type": "string"}}}


@router.post(
    "/generate",
    status_code=202,
    response_description="The job, queued",
    responses={
        202: {"headers": _LOCATION | REPLAYED_HEADER},
        **documented(400, 403, 408, 413, 415, 422, 503),
    },
)
@in_order_threads
def generate(
    backend: Served,
    body: Annotated[Body, Depends(read_body)],
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Order a video: as JSON, or as a form with the same fields, in which inputs may be files.

    In a form, texts stand as they are, `prompts` is repeated, and everything else is written as in JSON.
    """
    asked = Asked("/generate", body, idempotency_key)
    job = once(asked, backend, response, lambda hold: submit(body, backend, hold))
    response.headers["Location"] = f"{backend.settings.public_url.rstrip('/')}/jobs/{job.id}"
    return backend.show(job)


@router.get("/capability", responses=documented(503))
def get_capability(backend: Served) -> Capability:
    """What can be ordered: the tasks and LoRAs of the checkpoint, its sizes, lengths and defaults."""
    return latest(backend.redis)


@router.get("/jobs", responses=documented(404, 422, 503))
def list_jobs(
    backend: Served,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="`next` of the page before.")] = None,
) -> JobPage:
    """Jobs, the newest first."""
    found = backend.job_store.client.page(status=status, limit=limit + 1, after=after)
    jobs = [backend.show(job) for job in found[:limit]]
    return JobPage(jobs=jobs, next=jobs[-1].id if len(found) > limit else None)


@router.get("/jobs/{job_id}", responses=documented(404, 503))
async def get_job(job_id: str, backend: Served) -> JobView:
    """Return a job as it stands."""
    # `async`, so that FastAPI validates the answer on the event loop instead of in a thread again
    return await run_in_threadpool(lambda: backend.show(backend.job_store.client.get(job_id)))


@router.post("/jobs/{job_id}/cancel", responses=documented(404, 409, 503))
def cancel_job(job_id: str, backend: Served) -> JobView:
    """End a queued job at once, a running one after its current step; 409 if it succeeded or failed."""
    return backend.show(backend.job_store.client.cancel(job_id))


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    responses={
        202: {"description": "The job runs: it is being cancelled, and is removed when it has stopped"},
        204: {"description": "Record and files are removed"},
        **documented(404, 503),
    },
)
def delete_job(job_id: str, backend: Served) -> Response:
    """Remove a job's record and files; a running job is cancelled first."""
    if not backend.job_store.client.delete(job_id):
        return Response(status_code=202)
    with suppress(Unavailable):  # then maintenance does it
        remove_files_of(job_id, backend.job_store, backend.storage)
    return Response(status_code=204)
