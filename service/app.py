"""The HTTP service as an ASGI app: everything is put together here.

`python -m service` runs it; tests make it with settings of their own. A request for a video goes from
`service.jobs.routes` to `service.jobs.submission`, and from there through Redis to a worker.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, params

from jobs.connect import check_server
from jobs.errors import Unavailable
from jobs.store.outbox import Outbox
from jobs.tracing import close_tracing, open_tracing
from service import console
from service.backend import Backend, admitted
from service.console import session
from service.errors import documented, documented_as_openai, install_error_handlers
from service.http.body_deadlines import BodyDeadlines
from service.http.browser_guard import BrowserGuard
from service.http.request_ids import RequestIds
from service.http.tracing import TracedRequests
from service.inputs.uploads import remove_abandoned
from service.jobs import events, files
from service.jobs import routes as job_routes
from service.jobs.event_streams import EventStreams
from service.openai import routes as openai_routes
from service.openapi import docs
from service.openapi.schema import DocumentedAPI
from service.ops import health
from service.ops.maintenance import Maintenance
from service.ops.metrics import MeasuredRequests, Metrics
from service.ops.server import serving
from service.settings import Settings
from service.webhooks import routes as webhook_routes
from service.webhooks.courier import Courier
from service.webhooks.signing import Signer

logger = logging.getLogger(__name__)

_OPS_ROUTERS = (health.ops_router, docs.router)


def create_app(settings: Settings) -> FastAPI:
    """The service, which connects to Redis when it is first asked something."""
    backend = Backend.open(settings)
    app = DocumentedAPI(
        title="LongCat-Video",
        summary="Prompts and images in, videos out.",
        version=_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url=None,  # `service.openapi.docs` serves it, with a page that needs no other hosts
    )
    app.state.backend = backend
    app.state.openapi = app.openapi
    app.state.shows_details = settings.ops_port is None
    app.state.metrics = Metrics(backend)
    app.state.event_streams = EventStreams(backend.redis, settings)
    app.add_middleware(
        BodyDeadlines, timeout_s=settings.body_timeout_s, min_bytes_per_s=settings.body_min_bytes_per_s
    )
    app.add_middleware(BrowserGuard, authenticator=backend.authenticator)
    app.add_middleware(MeasuredRequests, metrics=app.state.metrics)
    app.state.tracing = open_tracing("longcat-service", wanted=settings.traces)
    app.add_middleware(TracedRequests, tracing=app.state.tracing)
    app.add_middleware(RequestIds)
    install_error_handlers(app)
    gated = (job_routes.router, files.router, events.router, webhook_routes.router)
    _include(app, gated, [Depends(admitted)], documented(401, 429))
    _include(app, (openai_routes.router,), [Depends(admitted)], documented_as_openai(401, 429))
    _include(app, (health.router, console.router, session.router))
    if settings.ops_port is None:
        _include(app, _OPS_ROUTERS)
    return app


def create_ops_app(service: FastAPI) -> FastAPI:
    """Create what `OPS_PORT` serves beside this service: metrics, documentation, details of readiness."""
    app = FastAPI(title=service.title, openapi_url=None, redirect_slashes=False)
    app.state.openapi = service.state.openapi
    app.state.backend = service.state.backend
    app.state.metrics = service.state.metrics
    app.state.shows_details = True
    app.add_middleware(BrowserGuard, authenticator=service.state.backend.authenticator)
    app.add_middleware(RequestIds)
    install_error_handlers(app)
    _include(app, (health.router, *_OPS_ROUTERS))
    return app


def _include(
    app: FastAPI,
    routers: Iterable[APIRouter],
    gates: Sequence[params.Depends] = (),
    answers: dict[int | str, dict[str, Any]] | None = None,
) -> None:
    """Add these routes, behind gates that are passed before anything of a request is read."""
    for router in routers:
        app.include_router(router, dependencies=gates, responses=answers)
        app.state.routes = [*getattr(app.state, "routes", ()), *router.routes]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Refuses to start on a Redis that cannot carry the queue; starts without one that is away."""
    backend: Backend = app.state.backend
    try:
        check_server(backend.redis)
    except Unavailable:
        logger.warning("Redis cannot be reached yet; requests are answered 503 until it can")
    remove_abandoned(backend.settings.upload_dir)
    settings = backend.settings
    signer = Signer(backend.redis, settings.webhook_secret, settings.webhook_secret_previous)
    courier = Courier(Outbox(backend.redis), signer, settings)
    async with AsyncExitStack() as stack:
        if settings.ops_port is not None:
            ops = create_ops_app(app)
            await stack.enter_async_context(serving(ops, settings.ops_host, settings.ops_port))
        stack.enter_context(backend.sandbox).start()
        stack.enter_context(Maintenance(backend))
        stack.enter_context(courier)
        yield
    backend.redis.close()
    close_tracing(app.state.tracing)


def _version() -> str:
    try:
        return version("longcat-video-service")
    except PackageNotFoundError:  # run from the folder
        return "0"
