"""Build the request of `POST /jobs/{job_id}/retry` from a job and the changes in the body."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from jobs.record import Job
from service.backend import CurrentBackend
from service.inputs.body import FILES, GENERATE, Body, receive_body
from service.jobs.views import RequestView

_DETERMINED = {"fps", "refinement"}
_DETERMINED_BY_CLIP = {"height", "width", "num_frames", "num_segments", "guidance_scale"}
_REPLACED = {  # by a change of another field
    "prompt": {"prompts"},
    "prompts": {"prompt"},
    "resolution": {"height", "width"},
}


async def receive_retry_body(job_id: str, request: Request, backend: CurrentBackend) -> AsyncIterator[Body]:
    """Yield the body of `POST /generate` that requests a job again, with the changes in this request's body.

    Raises JobNotFound and UnreadableRecord before the body is read, and what `receive_body` raises.
    """
    job = await run_in_threadpool(backend.jobs.get, job_id)
    if _has_body(request):
        async with receive_body(request, GENERATE, backend) as changes:
            yield changed_request(job, changes)
    else:
        yield changed_request(job, Body({}))


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
