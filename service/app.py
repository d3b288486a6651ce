"""The HTTP service as an ASGI app: everything is put together here.

`python -m service` runs it; tests make it with settings of their own. A request for a video goes from
`service.routes` to `service.submission`, and from there through Redis to a worker.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from fastapi import Depends, FastAPI, params

from jobs.connect import check_server
from jobs.errors import Unavailable
from jobs.outbox import Outbox
from jobs.tracing import open_tracing
from service import console, docs, events, files, health, openai_videos, routes
from service.backend import Backend, admitted
from service.errors import documented, documented_as_openai, install_error_handlers
from service.event_streams import EventStreams
from service.maintenance import Maintenance
from service.metrics import MeasuredRequests, Metrics
from service.openapi import DocumentedAPI
from service.request_ids import RequestIds
from service.settings import Settings
from service.tracing import TracedRequests
from service.uploads import remove_abandoned
from service.webhooks import routes as webhook_routes
from service.webhooks.courier import Courier
from service.webhooks.signing import Signer

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The service, which connects to Redis when it is first asked something."""
    backend = Backend.open(settings)
    app = DocumentedAPI(
        title="LongCat-Video",
        summary="Prompts and images in, videos out.",
        version=_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # `service.docs` does it without other hosts
        redoc_url=None,
    )
    app.state.backend = backend
    app.state.metrics = Metrics(backend)
    app.state.event_streams = EventStreams(backend.redis, settings)
    app.add_middleware(MeasuredRequests, metrics=app.state.metrics)
    app.state.tracing = open_tracing("longcat-service", wanted=settings.traces)
    if app.state.tracing:
        app.add_middleware(TracedRequests, tracing=app.state.tracing)
    app.add_middleware(RequestIds)
    install_error_handlers(app)
    _include(app, (routes, files, events, webhook_routes), [Depends(admitted)], documented(401, 429))
    _include(app, (openai_videos,), [Depends(admitted)], documented_as_openai(401, 429))
    _include(app, (health, console, docs))
    return app


def _include(
    app: FastAPI,
    parts: Iterable[ModuleType],
    gates: Sequence[params.Depends] = (),
    answers: dict[int | str, dict[str, Any]] | None = None,
) -> None:
    """Add the routes of these modules, behind gates that are passed before anything of a request is read."""
    for part in parts:
        app.include_router(part.router, dependencies=gates, responses=answers)
        app.state.routes = [*getattr(app.state, "routes", ()), *part.router.routes]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Refuses to start on a Redis that cannot carry the queue; starts without one that is away."""
    backend: Backend = app.state.backend
    try:
        check_server(backend.redis)
    except Unavailable:
        logger.warning("Redis cannot be reached yet; requests are answered 503 until it can")
    remove_abandoned(backend.settings.upload_dir)
    courier = Courier(
        Outbox(backend.redis), Signer(backend.redis, backend.settings.webhook_secret), backend.settings
    )
    with Maintenance(backend), courier:
        yield
    backend.redis.close()
    if app.state.tracing:
        app.state.tracing.close()


def _version() -> str:
    try:
        return version("longcat-video-service")
    except PackageNotFoundError:  # run from the folder
        return "0"
