"""A job as it goes, pushed to the client: server-sent events from the job's stream of changes.

Every event carries the whole job as it stands, so a client that missed some has missed nothing. The stream
is asked in short intervals rather than waited for, so that a thousand watchers hold no threads.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from jobs.errors import InvalidRequest, JobNotFound, Unavailable
from jobs.record import ENDED
from service.backend import Backend, Served
from service.errors import documented
from service.views import JobView

router = APIRouter(tags=["jobs"])

_EVENT_ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")
_BEGINNING = "0"
_TURNS_TO_LOOK = 6  # so often the place in the queue is looked up, too
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
    backend: Served,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
) -> StreamingResponse:
    """Watch a job: an event for each change, until it has ended."""
    if last_event_id is not None and not _EVENT_ID.fullmatch(last_event_id):
        raise InvalidRequest("Last-Event-ID: must be the id of an event", "Last-Event-ID")
    await run_in_threadpool(backend.ledger.get, job_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _watch(job_id, last_event_id or _BEGINNING, backend), 200, headers, "text/event-stream"
    )


async def _watch(job_id: str, event_id: str, backend: Backend) -> AsyncIterator[str]:
    """Begins with the job as it stands; ends when it ended, or when nothing more can be told of it."""
    shown: JobView | None = None
    for turn in itertools.count():
        try:
            changes = await run_in_threadpool(backend.ledger.events, job_id, event_id)
            if changes or turn % _TURNS_TO_LOOK == 0:
                event_id = changes[-1].id if changes else event_id
                job = await run_in_threadpool(_look, job_id, backend)
                yield _message(event_id, job, shown)
                shown = job
        except (JobNotFound, Unavailable):
            return
        if shown and shown.status in ENDED:
            return
        await asyncio.sleep(backend.settings.event_interval_s)


def _look(job_id: str, backend: Backend) -> JobView:
    return backend.show(backend.ledger.get(job_id))


def _message(event_id: str, job: JobView, shown: JobView | None) -> str:
    if job == shown:
        return ": still so\n\n"  # which keeps the connection alive
    is_new = shown is None or job.status != shown.status
    kind = "done" if job.status in ENDED else "status" if is_new else "progress"
    return f"id: {event_id}\nevent: {kind}\ndata: {job.model_dump_json()}\n\n"
