"""Health checks and metrics for those who operate the service."""

from __future__ import annotations

from typing import Annotated, Literal

from anyio import fail_after, to_thread
from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.datastructures import State

from jobs.errors import NoCapability, Unavailable
from jobs.registration import GroupStatus, live_groups
from service.backend import AppBackend, Backend
from service.http.error_handlers import error_responses
from service.inputs.uploads import check_disk_space

router = APIRouter(tags=["operation"])
ops_router = APIRouter(tags=["operation"])
"""Routes that move to `OPS_PORT` if there is one."""

_READINESS_TIMEOUT_S = 5.0


class Health(BaseModel):
    """The check has passed."""

    status: Literal["ok"] = "ok"


@router.get("/livez")
async def livez() -> Health:
    """Check that this process answers."""
    # runs on the event loop, so it never waits for a thread that another request occupies
    return Health()


@router.get("/readyz", responses=error_responses(422, 503))
async def readyz(
    request: Request,
    backend: AppBackend,
    workers: Annotated[bool, Query(description="Also require a worker group that is ready or busy.")] = False,
) -> Health:
    """Check that Redis and the storage answer and that uploads have disk space.

    Jobs are accepted while no worker is up, so this does not depend on workers unless `workers` is true.
    """
    try:
        with fail_after(_READINESS_TIMEOUT_S):
            found = await to_thread.run_sync(
                _check_dependencies,
                backend,
                limiter=backend.capacities.readiness_threads,
                abandon_on_cancel=True,
            )
    except TimeoutError as error:
        raise Unavailable("Redis, the storage or the disk for uploads does not answer in time") from error
    if workers and not any(group.state in {"ready", "busy"} for group in found):
        raise NoCapability(f"no worker group is ready{_details(request.app.state, found)}")
    return Health()


def _details(app: State, groups: list[GroupStatus]) -> str:
    """Return the states of groups and why they failed, as far as this port shows such things."""
    if not app.shows_details:
        return ""
    states = [
        f"{group.state} ({group.failure})" if group.failure and app.shows_failures else group.state
        for group in groups
    ]
    return f": {', '.join(states) or 'there is none'}"


def _check_dependencies(backend: Backend) -> list[GroupStatus]:
    """Return the live groups. Raise DiskFull, Unavailable."""
    check_disk_space(backend.settings.upload_dir)
    groups = live_groups(backend.redis)
    backend.storage.check()
    return groups


@ops_router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus text format",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus text format."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
