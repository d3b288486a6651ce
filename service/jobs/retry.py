"""Build the request of `POST /jobs/{job_id}/retry` from a job and the changes in the body."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from jobs.errors import JobNotFound
from jobs.record import Job
from service.backend import CurrentBackend
from service.inputs.body import FILES, GENERATE, Body, receive_body
from service.jobs.idempotency import IdempotencyKey
from service.jobs.views import RequestView

_DETERMINED = {"fps", "refinement"}
_DETERMINED_BY_CLIP = {"height", "width", "num_frames", "num_segments", "guidance_scale"}
_REPLACED = {  # by a change of another field
    "prompt": {"prompts"},
    "prompts": {"prompt"},
    "resolution": {"height", "width"},
}


@dataclass(frozen=True)
class Retry:
    """A request for the video of a job again.

    Attributes:
        changes: its body as it was sent.
        body: the body of `POST /generate` that it amounts to; None if there is no such job.
    """

    changes: Body
    body: Body | None


async def receive_retry_request(
    job_id: str, request: Request, backend: CurrentBackend, idempotency_key: IdempotencyKey
) -> AsyncIterator[Retry]:
    """Yield the request for a job again. With a key, it may have been answered before the job was deleted.

    Raises JobNotFound, if there is no key, and UnreadableRecord before the body is read, and what
    `receive_body` raises.
    """
    try:
        job = await run_in_threadpool(backend.jobs.get, job_id)
    except JobNotFound:
        if idempotency_key is None:
            raise
        job = None
    has_body = _has_body(request)
    async with receive_body(request, GENERATE, backend) if has_body else nullcontext(Body({})) as changes:
        yield Retry(changes, changed_request(job, changes) if job else None)


def changed_request(job: Job, changes: Body) -> Body:
    """Return the body that requests the video of a job again, with changes.

    Options that follow from others are left out, since the others may have changed.
    """
    values = RequestView.of(job).model_dump(mode="json") | {"metadata": job.metadata}
    left_out = _DETERMINED | changes.files.keys()
    if job.order.plan.task == "refine":
        left_out |= _DETERMINED_BY_CLIP
    if values["num_condition_frames"] == 0:
        left_out.add("num_condition_frames")
    for name in changes.values:
        left_out |= _REPLACED.get(name, set())
    kept = {name: value for name, value in values.items() if name not in left_out and value is not None}
    values = kept | changes.values
    has_inputs = changes.has_inputs or any(values.get(name) is not None for name in FILES)
    return Body(values, changes.files, has_inputs)


def _has_body(request: Request) -> bool:
    return "Transfer-Encoding" in request.headers or request.headers.get("Content-Length", "0") != "0"
