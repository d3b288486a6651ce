"""For those who look after the service: is it alive, can it work, and how does it stand."""

from __future__ import annotations

from typing import Literal

from anyio import fail_after, to_thread
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from jobs.errors import NoCapability, Unavailable
from jobs.registration import live_groups
from service.backend import Opened
from service.errors import documented

router = APIRouter(tags=["operation"])
ops_router = APIRouter(tags=["operation"])  # for operators alone, where they have a port of their own


_READINESS_TIMEOUT_S = 5.0


class Health(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


@router.get("/livez")
async def livez() -> Health:
    """This process answers."""
    # on the event loop, so that no other request can hold it up
    return Health()


@router.get("/readyz", responses=documented(503))
async def readyz(request: Request, backend: Opened) -> Health:
    """Redis answers, and a worker group is ready or at work."""
    try:
        with fail_after(_READINESS_TIMEOUT_S):
            found = await to_thread.run_sync(
                live_groups,
                backend.redis,
                limiter=backend.capacities.readiness_threads,
                abandon_on_cancel=True,
            )
    except TimeoutError as error:
        raise Unavailable("Redis does not answer in time") from error
    states = [group.state for group in found]
    if not {"ready", "busy"} & set(states):
        details = f": {', '.join(states) or 'there is none'}" if request.app.state.shows_details else ""
        raise NoCapability(f"no worker group is ready{details}")
    return Health()


@ops_router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
