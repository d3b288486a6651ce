"""OpenAI's videos API, on the same jobs as `/generate`.

OpenAI's clients work with this service when they are given its base URL. A video of theirs is a job of ours
with the same id. `service.openai.bodies` translates a request to a body of `/generate`, which is then
submitted like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from jobs.errors import JobNotFound, JobNotReady
from jobs.record import Job, Result
from jobs.store.idempotency import KeyReservation
from jobs.store.submission import Submitted
from model.spec.geometry import Size
from model.spec.limits import Limits
from service.backend import CurrentBackend, RequestBackend
from service.inputs.body import Body, receive_body
from service.inputs.uploads import upload_folder
from service.jobs import files
from service.jobs.idempotency import REPLAYED_HEADER, IdempotencyKey, IdempotentRequest, idempotent
from service.jobs.routes import delete_job
from service.jobs.showing import with_queue_estimate
from service.jobs.submission import submit
from service.jobs.submission_threads import in_submission_threads
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
from service.openai.errors import openai_error_responses
from service.openai.views import Video, VideoDeleted, VideoPage, poll_after_ms

router = APIRouter(prefix="/v1/videos", tags=["OpenAI"])

POLL_HEADER = "openai-poll-after-ms"
_POLL: dict[str, dict[str, Any]] = {
    POLL_HEADER: {"description": "When to poll again, until the job has ended", "schema": {"type": "integer"}}
}
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"headers": _POLL | REPLAYED_HEADER},
    **openai_error_responses(400, 403, 408, 413, 415, 422, 503),
}


async def _receive_create_body(request: Request, backend: CurrentBackend) -> AsyncIterator[Body]:
    async with receive_body(request, CREATE_FORM, backend) as body:
        yield body


async def _receive_extend_body(request: Request, backend: CurrentBackend) -> AsyncIterator[Body]:
    async with receive_body(request, EXTEND_FORM, backend) as body:
        yield body


@router.post("", responses=_CREATED)
@in_submission_threads
def create_video(
    backend: CurrentBackend,
    idempotency_key: IdempotencyKey,
    body: Annotated[Body, Depends(_receive_create_body)],
    response: Response,
) -> Video:
    """Request a video, as a form or as JSON."""
    video = read_request(body)

    def create(reservation: KeyReservation | None) -> Submitted:
        with in_their_words():
            return submit(new_video(video, body, _limits(backend)), backend, reservation)

    request = IdempotentRequest("/v1/videos", body, idempotency_key)
    return _view(idempotent(request, backend, response, create), backend, response)


@router.post("/extensions", responses=_CREATED | openai_error_responses(404, 409, 410))
@in_submission_threads
def extend_video(
    backend: CurrentBackend,
    idempotency_key: IdempotencyKey,
    body: Annotated[Body, Depends(_receive_extend_body)],
    response: Response,
) -> Video:
    """Request a video that continues a finished one, or an uploaded clip.

    It starts with the frames that it takes over; `seconds` counts what follows them.
    """
    extension = read_extension(body)
    request = IdempotentRequest("/v1/videos/extensions", body, idempotency_key)
    job = idempotent(request, backend, response, partial(_extend, extension, body, backend))
    return _view(job, backend, response)


@router.get("", responses=openai_error_responses(400, 404, 503))
def list_videos(
    backend: CurrentBackend,
    after: Annotated[str | None, Query(max_length=100, description="`last_id` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation time.")] = "desc",
) -> VideoPage:
    """List videos, a page at a time."""
    if limit == 0:
        return VideoPage.of([], has_more=False)
    try:
        found = backend.jobs.list_jobs(limit=limit + 1, after=after, newest_first=order == "desc")
    except JobNotFound as error:
        raise JobNotFound(error.message, "after") from error
    capability = backend.fleet().first().capability if found else None
    videos = [Video.of(job, capability) for job in found[:limit] if capability]
    return VideoPage.of(videos, has_more=len(found) > limit)


@router.get("/{video_id}", responses={200: {"headers": _POLL}, **openai_error_responses(404, 503)})
async def retrieve_video(video_id: str, backend: CurrentBackend, response: Response) -> Video:
    """Return a video. A failed one is answered with 200, too."""
    # `async`, so that FastAPI validates the response on the event loop instead of in another thread
    return await run_in_threadpool(lambda: _view(backend.jobs.get(video_id), backend, response))


@router.delete("/{video_id}", responses=openai_error_responses(404, 503))
def delete_video(video_id: str, backend: CurrentBackend) -> VideoDeleted:
    """Remove a video and its files. A running job is cancelled, and removed once it has stopped."""
    delete_job(video_id, backend)
    return VideoDeleted(id=video_id)


@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses={
        **files.file_responses("video/mp4", "image/jpeg"),
        **openai_error_responses(400, 404, 409, 410, 412, 416, 503),
    },
)
def download_content(
    video_id: str,
    request: Request,
    backend: CurrentBackend,
    variant: Annotated[Literal["video", "thumbnail"], Query(description="The MP4, or a frame.")] = "video",
) -> Response:
    """Return the finished video. Ranges are supported; an object store is redirected to."""
    serve = files.get_video if variant == "video" else files.get_thumbnail
    return serve(video_id, request, backend)


def _view(job: Job, backend: RequestBackend, response: Response) -> Video:
    """Return a job as a video, and tell the client in a header when to poll again."""
    fleet = backend.fleet()
    job, position = with_queue_estimate(job, backend, fleet)
    wait_ms = poll_after_ms(job, position)
    if wait_ms is not None:
        response.headers[POLL_HEADER] = str(wait_ms)
    return Video.of(job, fleet.first().capability)


def _extend(
    extension: ExtensionRequest, body: Body, backend: RequestBackend, reservation: KeyReservation | None
) -> Submitted:
    limits = _limits(backend)
    if extension.video is None:
        with in_their_words():
            return submit(longer_video(extension, body.files["video"], None, limits), backend, reservation)
    result = _result(extension.video.id, backend)
    with upload_folder(backend.settings.upload_dir) as folder:
        clip = folder / "finished.mp4"
        backend.storage.fetch(result.video_key, clip)
        with clip.open("rb") as file, in_their_words():
            size = Size(result.height, result.width)
            return submit(longer_video(extension, file, size, limits), backend, reservation)


def _result(video_id: str, backend: RequestBackend) -> Result:
    job = backend.jobs.get(video_id)
    if job.result is None:
        raise JobNotReady(f"video {video_id} is {job.status} and cannot be extended")
    return job.result


def _limits(backend: RequestBackend) -> Limits:
    return backend.fleet().first().capability.model_limits
