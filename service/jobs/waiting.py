"""Wait for the end of a job within the request that creates it, without holding a thread.

A waiting request counts as an open event stream.
"""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import Request

from jobs.errors import LimitReached, Unavailable
from jobs.record import ENDED
from service.backend import RequestBackend
from service.jobs.events import BEFORE_FIRST_EVENT, read_if_authorized
from service.jobs.views import JobView

MAX_WAIT_S = 60
_CHECK_S = 5.0  # how often it is checked that the client is still there


async def wait_for_end(job: JobView, request: Request, backend: RequestBackend, wait_s: float) -> JobView:
    """Return the job when it has ended, or as it is after `wait_s`.

    The wait ends early if the client disconnects or the service shuts down. It does not begin if too many
    event streams are open: the job is queued in any case.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    streams = backend.event_streams
    try:
        with streams.open(backend.caller.owner, {job.id: BEFORE_FIRST_EVENT}) as stream:
            while job.status not in ENDED and not streams.is_closing and clock() < deadline:
                await stream.wait(min(deadline - clock(), _CHECK_S))
                if await request.is_disconnected():
                    break
                found = await streams.run(partial(read_if_authorized, stream, backend))
                if not found:  # the API key was revoked, or the job was deleted
                    break
                [job] = found
    except (LimitReached, Unavailable):
        pass  # the client has the job and can ask for it
    return job
