"""Serve the files of a finished job: its video, thumbnail and timeline.

A file in a folder is streamed, whole or in part. A file in an S3 store is answered with a redirect to a
presigned URL, except for HEAD requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from jobs.errors import JobNotReady
from jobs.record import Result
from jobs.storage.keys import timeline_key
from service.backend import CurrentBackend, RequestBackend
from service.errors import PreconditionFailed
from service.http.error_handlers import error_responses
from service.http.ranges import parse_range

router = APIRouter(tags=["jobs"])

_BINARY = {"type": "string", "format": "binary"}
_SCHEMAS = {
    "application/json": {
        "type": "object",
        "properties": {"traceEvents": {"type": "array", "items": {"type": "object"}}},
        "required": ["traceEvents"],
    }
}
_HEADERS = {"ETag": {"schema": {"type": "string"}}, "Accept-Ranges": {"schema": {"type": "string"}}}


def file_responses(*media_types: str) -> dict[int | str, dict[str, object]]:
    """Return the `responses` argument of a route that serves files of these types."""
    content = {media_type: {"schema": _SCHEMAS.get(media_type, _BINARY)} for media_type in media_types}
    return {
        200: {"description": "The whole file", "content": content, "headers": _HEADERS},
        206: {"description": "The requested range", "content": content, "headers": _HEADERS},
        304: {"description": "Not changed since `If-None-Match`"},
        307: {"description": "The file is in an object store, at this URL"},
        **error_responses(404, 409, 410, 412, 416, 503),
    }


@dataclass(frozen=True)
class StoredFile:
    """A file of a finished job. `etag` includes its quotes; `name` is suggested for saving the file."""

    key: str
    media_type: str
    etag: str
    name: str


@router.get("/jobs/{job_id}/video", response_class=Response, responses=file_responses("video/mp4"))
def get_video(job_id: str, request: Request, backend: CurrentBackend) -> Response:
    """Return the finished video as MP4. Ranges are supported; an object store is redirected to."""
    result = _result(job_id, "video", backend)
    file = StoredFile(result.video_key, "video/mp4", f'"{result.sha256}"', f"{job_id}.mp4")
    return _serve(file, request, backend)


@router.get("/jobs/{job_id}/thumbnail", response_class=Response, responses=file_responses("image/jpeg"))
def get_thumbnail(job_id: str, request: Request, backend: CurrentBackend) -> Response:
    """Return a frame of the finished video as JPEG."""
    result = _result(job_id, "thumbnail", backend)
    file = StoredFile(result.thumbnail_key, "image/jpeg", f'"{result.sha256}-still"', f"{job_id}.jpg")
    return _serve(file, request, backend)


@router.get("/jobs/{job_id}/timeline", response_class=Response, responses=file_responses("application/json"))
def get_timeline(job_id: str, request: Request, backend: CurrentBackend) -> Response:
    """Return a trace of how a finished job was processed, which Perfetto and chrome://tracing can open.

    The format is the Trace Event Format; times are microseconds since 1970. Answers 410 if the trace could
    not be stored.
    """
    result = _result(job_id, "timeline", backend)
    key, etag = timeline_key(result.video_key), f'"{result.sha256}-timeline"'
    file = StoredFile(key, "application/json", etag, f"{job_id}.json")
    return _serve(file, request, backend)


def _result(job_id: str, part: str, backend: RequestBackend) -> Result:
    """Return the result of a job. Raises JobNotReady, which names the part of it that was asked for."""
    job = backend.jobs.get(job_id)
    if job.result is None:
        raise JobNotReady(f"the job is {job.status} and has no {part}")
    return job.result


def _serve(file: StoredFile, request: Request, backend: RequestBackend) -> Response:
    """Return the file, in whole or in part, after checking the preconditions (RFC 9110, section 13.2.2)."""
    if not _is_wanted_version(request, file):
        raise PreconditionFailed(f"the file is version {file.etag} now", "If-Match")
    if _is_cached(request, file):
        return Response(status_code=304, headers={"ETag": file.etag})
    if request.method != "HEAD" and (link := backend.storage.link(file.key, backend.settings.link_expires_s)):
        return RedirectResponse(link, 307)
    size_bytes = backend.storage.size_bytes(file.key)
    requested = (
        parse_range(request.headers.get("Range"), size_bytes) if _range_applies(request, file) else None
    )
    served = range(size_bytes) if requested is None else requested
    headers = {
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{file.name}"',
        "Content-Length": str(len(served)),
    }
    status = 200
    if requested is not None:
        status = 206
        headers["Content-Range"] = f"bytes {served.start}-{served.stop - 1}/{size_bytes}"
    if request.method == "HEAD":
        return Response(None, status, headers, file.media_type)
    chunks = backend.storage.read(file.key, served.start, served.stop)
    return StreamingResponse(chunks, status, headers, file.media_type)


def _is_wanted_version(request: Request, file: StoredFile) -> bool:
    """Check that `If-Match`, if there is one, names this version. Weak tags (`W/"…"`) match nothing."""
    known = request.headers.get("If-Match")
    if known is None or known.strip() == "*":
        return True
    return file.etag in (tag.strip() for tag in known.split(","))


def _is_cached(request: Request, file: StoredFile) -> bool:
    """Check that the client has this version of the file already."""
    known = request.headers.get("If-None-Match", "")
    return known.strip() == "*" or file.etag in known


def _range_applies(request: Request, file: StoredFile) -> bool:
    """Check that a range, if it is bound to a version of the file by `If-Range`, is bound to this one."""
    return request.headers.get("If-Range", file.etag) == file.etag
