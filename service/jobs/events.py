"""A job as it goes, pushed to the client: server-sent events from the job's stream of changes.

Every event carries the whole job as it stands, so a client that missed some has missed nothing. A stream ends
with its job, with the right to see it, and before the service ends.
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
from service.backend import Backend, Served
from service.errors import documented
from service.jobs.event_streams import EventStream, EventStreams
from service.jobs.views import JobView

router = APIRouter(tags=["jobs"])

_EVENT_ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")
_BEGINNING = "0"
_TURNS_TO_LOOK = (
    6  # after so many intervals without news the job is read again: its place in the queue changes
)
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
        "description": "Events `status`, `progress` and, at last, `done`; the data of each is the job.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}


@router.get(
    "/jobs/{job_id}/events", response_class=StreamingResponse, responses=_STREAM | documented(404, 422, 503)
)
async def get_events(
    job_id: str,
    request: Request,
    backend: Served,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
) -> StreamingResponse:
    """Watch a job: an event for each change, until it has ended."""
    if last_event_id is not None and not _EVENT_ID.fullmatch(last_event_id):
        raise InvalidRequest("Last-Event-ID: must be the id of an event", "Last-Event-ID")
    streams: EventStreams = request.app.state.event_streams
    await streams.run(partial(backend.job_store.client.get, job_id))
    return _Watched(job_id, last_event_id or _BEGINNING, backend, streams)


class _Watched(StreamingResponse):
    """The answer that counts as an open stream for as long as it is being sent."""

    def __init__(self, job_id: str, seen: str, backend: Backend, streams: EventStreams) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__((), 200, headers, "text/event-stream")
        self._open = partial(streams.open, backend.owner, job_id, seen)
        self._watch = partial(_watch, backend=backend, streams=streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Raise LimitReached before anything is sent."""
        with self._open() as stream:
            self.body_iterator = self._watch(stream)
            await super().__call__(scope, receive, send)


async def _watch(stream: EventStream, backend: Backend, streams: EventStreams) -> AsyncIterator[str]:
    shown: JobView | None = None
    while not streams.is_closing:
        try:
            job = await streams.run(partial(_read_if_authorized, stream, backend))
        except (JobNotFound, Unavailable):
            return
        if job is None:
            yield ": you may no longer see this\n\n"
            return
        yield _message(stream.seen, job, shown)
        if job.status in ENDED:
            return
        shown = job
        await stream.wait(backend.settings.event_interval_s * _TURNS_TO_LOOK)
    yield ": the service ends; connect again\n\n"


def _read_if_authorized(stream: EventStream, backend: Backend) -> JobView | None:
    """Return the job, at least as new as the last event, or None if the client may no longer see it."""
    if not backend.is_authorized():
        return None
    if changes := backend.job_store.client.events(stream.job_id, stream.seen):
        stream.seen = changes[-1].id
    job = backend.show(backend.job_store.client.get(stream.job_id))
    if job.status == "queued" and job.queue_position is None:  # it changed between the two questions
        return backend.show(backend.job_store.client.get(stream.job_id))
    return job


def _message(event_id: str, job: JobView, shown: JobView | None) -> str:
    if job == shown:
        return ": still so\n\n"  # which keeps the connection alive
    is_new = shown is None or job.status != shown.status
    kind = "done" if job.status in ENDED else "status" if is_new else "progress"
    return f"id: {event_id}\nevent: {kind}\ndata: {job.model_dump_json()}\n\n"
