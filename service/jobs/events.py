"""Push the changes of a job to clients as server-sent events.

Every event carries the whole job, so a client that missed some has missed nothing. A stream ends with its
job, when the client loses the right to see it, and before the service shuts down.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import InvalidRequest, JobNotFound, Unavailable
from jobs.record import ENDED
from service.backend import Backend, CurrentBackend
from service.http.error_handlers import error_responses
from service.jobs.event_streams import EventStream, EventStreams
from service.jobs.views import JobView

router = APIRouter(tags=["jobs"])

_EVENT_ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")
BEFORE_FIRST_EVENT = "0"
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
    if last_event_id and not _EVENT_ID.fullmatch(last_event_id):
        raise InvalidRequest("Last-Event-ID: must be the id of an event", "Last-Event-ID")
    streams: EventStreams = request.app.state.event_streams
    await streams.run(partial(backend.jobs.get, job_id))
    if request.method == "HEAD":
        return StreamingResponse((), headers=_HEADERS, media_type=_MEDIA_TYPE)
    return _EventStreamResponse(job_id, last_event_id or BEFORE_FIRST_EVENT, backend, streams)


class _EventStreamResponse(StreamingResponse):
    """A response that counts as an open event stream while it is being sent."""

    def __init__(self, job_id: str, last_event_id: str, backend: Backend, streams: EventStreams) -> None:
        super().__init__((), 200, _HEADERS, _MEDIA_TYPE)
        self._open = partial(streams.open, backend.owner, job_id, last_event_id)
        self._events = partial(_events, backend=backend, streams=streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Raise LimitReached before anything is sent."""
        with self._open() as stream:
            self.body_iterator = self._events(stream)
            await super().__call__(scope, receive, send)


async def _events(stream: EventStream, backend: Backend, streams: EventStreams) -> AsyncIterator[str]:
    sent: JobView | None = None
    while not streams.is_closing:
        try:
            job = await streams.run(partial(read_if_authorized, stream, backend))
        except (JobNotFound, Unavailable):
            return
        if job is None:
            yield ": you are no longer allowed to see this job\n\n"
            return
        yield _format_event(stream.last_event_id, job, sent)
        if job.status in ENDED:
            return
        sent = job
        await stream.wait(backend.settings.event_interval_s * _INTERVALS_BETWEEN_READS)
    yield ": the service is shutting down; connect again\n\n"


def read_if_authorized(stream: EventStream, backend: Backend) -> JobView | None:
    """Return the job, at least as new as the last event, or None if the client may no longer see it."""
    if not backend.is_authorized():
        return None
    if events := backend.jobs.events(stream.job_id, stream.last_event_id):
        stream.last_event_id = events[-1].id
    job = backend.view(backend.jobs.get(stream.job_id))
    if job.status == "queued" and job.queue_position is None:  # it left the queue between the two reads
        return backend.view(backend.jobs.get(stream.job_id))
    return job


def _format_event(event_id: str, job: JobView, sent: JobView | None) -> str:
    if job == sent:
        return ": no change\n\n"  # keeps the connection alive
    is_new_status = sent is None or job.status != sent.status
    kind = "done" if job.status in ENDED else "status" if is_new_status else "progress"
    return f"id: {event_id}\nevent: {kind}\ndata: {job.model_dump_json()}\n\n"
