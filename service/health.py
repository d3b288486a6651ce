"""For those who look after the service: is it alive, can it work, and how does it stand."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from jobs.capability import groups
from jobs.errors import NoCapability
from service.backend import Opened
from service.errors import documented

router = APIRouter(tags=["operation"])
ops_router = APIRouter(tags=["operation"])  # for operators alone, where they have a port of their own


class Health(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


@router.get("/livez")
def livez() -> Health:
    """This process answers."""
    return Health()


@router.get("/readyz", responses=documented(503))
def readyz(request: Request, backend: Opened) -> Health:
    """Redis answers, and a worker group is ready or at work."""
    states = [group.state for group in groups(backend.redis)]
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
