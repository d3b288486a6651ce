"""Push the changes of jobs to clients as server-sent events.

Every event carries the whole job, so a client that missed some has missed nothing. A stream ends when its
jobs have ended, when the client loses the right to see them, and before the service shuts down.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import InvalidRequest, Unavailable
from jobs.record import ENDED
from jobs.store.events import newest_events
from service.backend import CurrentBackend, RequestBackend
from service.http.error_handlers import error_responses
from service.jobs.event_streams import EventStream
from service.jobs.showing import show_all
from service.jobs.views import JobView

router = APIRouter(tags=["jobs"])

_EVENT_ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")
BEFORE_FIRST_EVENT = "0"
MAX_JOBS = 50  # on one stream
_INTERVALS_BETWEEN_READS = 6  # without events, the job is read this often: its queue position changes
_MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "Each event of the stream.",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["status", "progress", "done"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `status`, `progress` and finally `done`. The data of each event is the job.",
        "content": {_MEDIA_TYPE: {"schema": _EVENT}},
    }
}


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses=_STREAM | error_responses(404, 422, 503),
)
async def get_events(
    job_id: str,
    request: Request,
    backend: CurrentBackend,
    last_event_id: Annotated[
        str | None, Header(description="Continue after this event; empty for all of them.")
    ] = None,
) -> StreamingResponse:
    """Watch a job: an event for each change, until the job has ended."""
    _check_event_id(last_event_id)
    await backend.event_streams.run(partial(backend.jobs.get, job_id))
    if request.method == "HEAD":
        return StreamingResponse((), headers=_HEADERS, media_type=_MEDIA_TYPE)
    return _EventStreamResponse({job_id: last_event_id or BEFORE_FIRST_EVENT}, backend)


@router.get("/events", response_class=StreamingResponse, responses=_STREAM | error_responses(404, 422, 503))
async def get_events_of_jobs(
    request: Request,
    backend: CurrentBackend,
    jobs: Annotated[
        str, Query(max_length=5000, description="Ids of the jobs to watch, with commas between.")
    ],
    last_event_id: Annotated[
        str | None, Header(description="The last event of an earlier connection to the same jobs.")
    ] = None,
) -> StreamingResponse:
    """Watch several jobs on one connection: an event for each change, until all of them have ended.

    Each event carries the whole job, and every connection begins with the current state of each. Jobs that
    are deleted are watched no longer.
    """
    _check_event_id(last_event_id)
    job_ids = list(dict.fromkeys(filter(None, jobs.split(","))))
    if not 1 <= len(job_ids) <= MAX_JOBS:
        raise InvalidRequest(f"jobs: must name from 1 to {MAX_JOBS} jobs", "jobs")
    await backend.event_streams.run(partial(_check_all_exist, job_ids, backend))
    if request.method == "HEAD":
        return StreamingResponse((), headers=_HEADERS, media_type=_MEDIA_TYPE)
    return _EventStreamResponse(dict.fromkeys(job_ids, last_event_id or BEFORE_FIRST_EVENT), backend)


def _check_event_id(event_id: str | None) -> None:
    if event_id and not _EVENT_ID.fullmatch(event_id):
        raise InvalidRequest("Last-Event-ID: must be the id of an event", "Last-Event-ID")


def _check_all_exist(job_ids: Sequence[str], backend: RequestBackend) -> None:
    """Raise JobNotFound or UnreadableRecord if one of the jobs does not exist or cannot be read."""
    found = backend.jobs.get_all(job_ids)
    for job_id in job_ids:
        if job_id not in found:
            backend.jobs.get(job_id)


class _EventStreamResponse(StreamingResponse):
    """A response that counts as an open event stream while it is being sent."""

    def __init__(self, last_event_ids: Mapping[str, str], backend: RequestBackend) -> None:
        super().__init__((), 200, _HEADERS, _MEDIA_TYPE)
        self._open = partial(backend.event_streams.open, backend.caller.owner, last_event_ids)
        self._events = partial(_events, backend=backend)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Raise LimitReached before anything is sent."""
        with self._open() as stream:
            self.body_iterator = self._events(stream)
            await super().__call__(scope, receive, send)


async def _events(stream: EventStream, backend: RequestBackend) -> AsyncIterator[str]:
    streams = backend.event_streams
    sent: dict[str, JobView] = {}
    while not streams.is_closing:
        try:
            jobs = await streams.run(partial(read_if_authorized, stream, backend))
        except Unavailable as error:
            yield f": {error.message}\n\n"
            return
        if jobs is None:
            yield ": you are no longer allowed to see this\n\n"
            return
        changed = [job for job in jobs if _has_changed(job, sent.get(job.id))]
        for job in changed:
            yield _format_event(stream.last_event_ids[job.id], job, sent.get(job.id))
        sent = {job.id: job for job in jobs}
        stream.forget(job.id for job in jobs if job.status in ENDED)
        if not stream.last_event_ids:
            return
        if not changed:
            yield ": no change\n\n"  # keeps the connection alive
        await stream.wait(backend.settings.event_interval_s * _INTERVALS_BETWEEN_READS)
    yield ": the service is shutting down; connect again\n\n"


def read_if_authorized(stream: EventStream, backend: RequestBackend) -> list[JobView] | None:
    """Return the jobs of a stream, each at least as new as its last event. Forget those that are deleted.

    Return None if the client may no longer see them.
    """
    if not backend.is_authorized():
        return None
    newest = newest_events(backend.redis, stream.last_event_ids)
    jobs = _read_all(list(stream.last_event_ids), backend)
    stream.last_event_ids = {job.id: newest.get(job.id, stream.last_event_ids[job.id]) for job in jobs}
    return jobs


def _has_changed(job: JobView, sent: JobView | None) -> bool:
    """Compare a job with what was sent of it. The predicted time differs a little each time."""
    return sent is None or job != sent.model_copy(update={"predicted_finish_at": job.predicted_finish_at})


def _read_all(job_ids: Sequence[str], backend: RequestBackend) -> list[JobView]:
    """Return those of the jobs that exist and can be read, with few commands whatever their number."""
    jobs = show_all(list(backend.jobs.get_all(job_ids).values()), backend)
    # A queued job without a position left the queue, or was deleted, after its record was read.
    moved = [job.id for job in jobs if job.status == "queued" and job.queue_position is None]
    if not moved:
        return jobs
    again = {job.id: job for job in show_all(list(backend.jobs.get_all(moved).values()), backend)}
    return [again.get(job.id, job) for job in jobs if job.id not in moved or job.id in again]


def _format_event(event_id: str, job: JobView, sent: JobView | None) -> str:
    is_new_status = sent is None or job.status != sent.status
    kind = "done" if job.status in ENDED else "status" if is_new_status else "progress"
    return f"id: {event_id}\nevent: {kind}\ndata: {job.model_dump_json()}\n\n"
