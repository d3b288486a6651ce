"""Handing out what a finished job has: whole, in part, or by a link into an S3 store."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from jobs.errors import JobNotReady
from jobs.record import Result
from jobs.storage.keys import timeline_key
from service.backend import Backend, Served
from service.errors import documented
from service.http.ranges import wanted_range

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


def answers(*media_types: str) -> dict[int | str, dict[str, object]]:
    """What a route answers that hands out such files."""
    content = {kind: {"schema": _SCHEMAS.get(kind, _BINARY)} for kind in media_types}
    return {
        200: {"description": "All of it", "content": content, "headers": _HEADERS},
        206: {"description": "The range asked for", "content": content, "headers": _HEADERS},
        304: {"description": "Not changed since `If-None-Match`"},
        307: {"description": "It lies in an object store, there"},
        **documented(404, 409, 410, 416, 503),
    }


@dataclass(frozen=True)
class StoredFile:
    """A file of a finished job; `etag` with its quotes."""

    key: str
    media_type: str
    etag: str
    name: str


@router.head("/jobs/{job_id}/video", include_in_schema=False)
@router.get("/jobs/{job_id}/video", response_class=Response, responses=answers("video/mp4"))
def get_video(job_id: str, request: Request, backend: Served) -> Response:
    """The finished MP4, with ranges; a redirect where it lies in an object store."""
    result = _result(job_id, backend)
    file = StoredFile(result.video_key, "video/mp4", f'"{result.sha256}"', f"{job_id}.mp4")
    return _serve(file, request, backend)


@router.head("/jobs/{job_id}/thumbnail", include_in_schema=False)
@router.get("/jobs/{job_id}/thumbnail", response_class=Response, responses=answers("image/jpeg"))
def get_thumbnail(job_id: str, request: Request, backend: Served) -> Response:
    """A still of the finished video, as JPEG."""
    result = _result(job_id, backend)
    file = StoredFile(result.thumbnail_key, "image/jpeg", f'"{result.sha256}-still"', f"{job_id}.jpg")
    return _serve(file, request, backend)


@router.head("/jobs/{job_id}/timeline", include_in_schema=False)
@router.get("/jobs/{job_id}/timeline", response_class=Response, responses=answers("application/json"))
def get_timeline(job_id: str, request: Request, backend: Served) -> Response:
    """What was done for a finished job, and when: a trace that Perfetto and chrome://tracing open.

    Trace Event Format; times are microseconds since 1970. 410 if it could not be stored.
    """
    result = _result(job_id, backend)
    key, etag = timeline_key(result.video_key), f'"{result.sha256}-timeline"'
    file = StoredFile(key, "application/json", etag, f"{job_id}.json")
    return _serve(file, request, backend)


def _result(job_id: str, backend: Backend) -> Result:
    job = backend.job_store.client.get(job_id)
    if job.result is None:
        raise JobNotReady(f"the job is {job.status} and has no video")
    return job.result


def _serve(file: StoredFile, request: Request, backend: Backend) -> Response:
    if _client_has(request, file):
        return Response(status_code=304, headers={"ETag": file.etag})
    if request.method != "HEAD" and (link := backend.storage.link(file.key, backend.settings.link_expires_s)):
        return RedirectResponse(link, 307)
    size_bytes = backend.storage.size_bytes(file.key)
    part = wanted_range(request.headers.get("Range"), size_bytes) if _range_counts(request, file) else None
    sent = range(size_bytes) if part is None else part
    status = 200 if part is None else 206
    headers = _headers(file, sent)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size_bytes}"
    if request.method == "HEAD":
        return Response(None, status, headers, file.media_type)
    chunks = backend.storage.read(file.key, sent.start, sent.stop)
    return StreamingResponse(chunks, status, headers, file.media_type)


def _headers(file: StoredFile, sent: range) -> dict[str, str]:
    return {
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{file.name}"',
        "Content-Length": str(len(sent)),
    }


def _client_has(request: Request, file: StoredFile) -> bool:
    known = request.headers.get("If-None-Match", "")
    return known.strip() == "*" or file.etag in known


def _range_counts(request: Request, file: StoredFile) -> bool:
    """Whether the client's copy, if it has a part of one, is of this very file."""
    return request.headers.get("If-Range", file.etag) == file.etag
