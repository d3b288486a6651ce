"""OpenAI's videos API on the same jobs as `/generate`, so that its clients work here with another base URL.

A video of theirs is a job of ours under the same id. What is sent is brought to a body of `/generate` by
`service.openai.bodies` and goes the same way from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from jobs.capability import Capability, latest
from jobs.errors import JobNotReady
from jobs.record import Job, Result
from jobs.store.idempotency import Hold
from model.spec.geometry import Size
from model.spec.limits import Limits
from service.backend import Backend, Served
from service.errors import documented_as_openai
from service.http.order_threads import in_order_threads
from service.inputs.body import Body, opened_body
from service.inputs.uploads import upload_folder
from service.jobs import files
from service.jobs.idempotency import REPLAYED_HEADER, Asked, IdempotencyKey, once
from service.jobs.routes import delete_job
from service.jobs.submission import submit
from service.openai.bodies import (
    CREATE_FORM,
    EXTEND_FORM,
    ExtensionRequest,
    in_their_words,
    longer_video,
    new_video,
    read_extension,
    read_request,
)
from service.openai.views import Video, VideoDeleted, VideoPage, poll_after_ms

router = APIRouter(prefix="/v1/videos", tags=["OpenAI"])

POLL_HEADER = "openai-poll-after-ms"
_POLL: dict[str, dict[str, Any]] = {
    POLL_HEADER: {"description": "When to ask again, unless it has ended", "schema": {"type": "integer"}}
}
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"headers": _POLL | REPLAYED_HEADER},
    **documented_as_openai(400, 403, 408, 413, 415, 422, 503),
}


async def _read_creation(request: Request, backend: Served) -> AsyncIterator[Body]:
    async with opened_body(request, CREATE_FORM, backend) as body:
        yield body


async def _read_extension(request: Request, backend: Served) -> AsyncIterator[Body]:
    async with opened_body(request, EXTEND_FORM, backend) as body:
        yield body


@router.post("", responses=_CREATED)
@in_order_threads
def create_video(
    backend: Served,
    body: Annotated[Body, Depends(_read_creation)],
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Video:
    """Order a video, as a form or as JSON."""
    request = read_request(body)

    def create(hold: Hold | None) -> Job:
        with in_their_words():
            return submit(new_video(request, body, _limits(backend)), backend, hold)

    asked = Asked("/v1/videos", body, idempotency_key)
    return _show(once(asked, backend, response, create), backend, response)


@router.post("/extensions", responses=_CREATED | documented_as_openai(404, 409, 410))
@in_order_threads
def extend_video(
    backend: Served,
    body: Annotated[Body, Depends(_read_extension)],
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Video:
    """Order a video that goes on where a finished one, or a clip of yours, ends.

    It begins with the frames that it took over; `seconds` come behind them.
    """
    request = read_extension(body)
    asked = Asked("/v1/videos/extensions", body, idempotency_key)
    job = once(asked, backend, response, lambda hold: _extend(request, body, backend, hold))
    return _show(job, backend, response)


@router.get("", responses=documented_as_openai(400, 404, 503))
def list_videos(
    backend: Served,
    after: Annotated[str | None, Query(max_length=100, description="`last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time of their creation.")] = "desc",
) -> VideoPage:
    """Videos, a page at a time."""
    if limit == 0:
        return VideoPage.of([], has_more=False)
    found = backend.job_store.client.page(limit=limit + 1, after=after, newest_first=order == "desc")
    capability = latest(backend.redis) if found else None
    videos = [Video.of(job, capability) for job in found[:limit] if capability]
    return VideoPage.of(videos, has_more=len(found) > limit)


@router.get("/{video_id}", responses={200: {"headers": _POLL}, **documented_as_openai(404, 503)})
async def retrieve_video(video_id: str, backend: Served, response: Response) -> Video:
    """Return a video as it stands; one that failed is no error."""
    # `async`, so that FastAPI validates the answer on the event loop instead of in a thread again
    return await run_in_threadpool(lambda: _show(backend.job_store.client.get(video_id), backend, response))


@router.delete("/{video_id}", responses=documented_as_openai(404, 503))
def delete_video(video_id: str, backend: Served) -> VideoDeleted:
    """Remove a video and its files; a job that runs is cancelled, and removed when it has stopped."""
    delete_job(video_id, backend)
    return VideoDeleted(id=video_id)


@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses={
        **files.answers("video/mp4", "image/jpeg"),
        **documented_as_openai(400, 404, 409, 410, 416, 503),
    },
)
def download_content(
    video_id: str,
    request: Request,
    backend: Served,
    variant: Annotated[Literal["video", "thumbnail"], Query(description="The MP4, or a still.")] = "video",
) -> Response:
    """The finished video, with ranges; a redirect where it lies in an object store."""
    serve = files.get_video if variant == "video" else files.get_thumbnail
    return serve(video_id, request, backend)


def _show(job: Job, backend: Backend, response: Response) -> Video:
    job, position = backend.foresee(job)
    wait_ms = poll_after_ms(job, position)
    if wait_ms is not None:
        response.headers[POLL_HEADER] = str(wait_ms)
    return Video.of(job, latest(backend.redis))


def _extend(request: ExtensionRequest, body: Body, backend: Backend, hold: Hold | None) -> Job:
    limits = _limits(backend)
    if request.video is None:
        with in_their_words():
            return submit(longer_video(request, body.files["video"], None, limits), backend, hold)
    finished = _finished(request.video.id, backend)
    with upload_folder(backend.settings.upload_dir) as folder:
        clip = folder / "finished.mp4"
        backend.storage.fetch(finished.video_key, clip)
        with clip.open("rb") as file, in_their_words():
            size = Size(finished.height, finished.width)
            return submit(longer_video(request, file, size, limits), backend, hold)


def _finished(video_id: str, backend: Backend) -> Result:
    job = backend.job_store.client.get(video_id)
    if job.result is None:
        raise JobNotReady(f"video {video_id} is {job.status} and cannot be extended")
    return job.result


def _limits(backend: Backend) -> Limits:
    capability: Capability = latest(backend.redis)
    return Limits.from_json(capability.limits)
