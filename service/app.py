"""Build the HTTP service as an ASGI app, from its settings.

`python -m service` runs it. A request for a video goes from `service.jobs.routes` to
`service.jobs.submission`, and from there through Redis to a worker.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, params
from fastapi.middleware.cors import CORSMiddleware

from jobs.errors import Unavailable
from jobs.store.keys_version import check_redis
from jobs.store.outbox import Outbox
from jobs.tracing import close_tracing, open_tracing
from service.backend import Backend, require_api_key
from service.console import routes as console_routes
from service.console import session as console_session
from service.http.body_deadlines import BodyDeadlines
from service.http.browser_guard import BrowserGuard
from service.http.error_handlers import error_responses, install_error_handlers
from service.http.head_routes import head_routes
from service.http.query import check_query
from service.http.request_ids import RequestIds
from service.http.shutdown import ShutdownResponses
from service.http.tracing import TracedRequests
from service.inputs.uploads import remove_abandoned_folders
from service.jobs import events, files
from service.jobs import routes as job_routes
from service.jobs.idempotency import REPLAYED
from service.openai import models
from service.openai import routes as openai_routes
from service.openai.errors import openai_error_responses
from service.openapi import docs
from service.openapi.schema import DocumentedAPI
from service.ops import health
from service.ops.maintenance import Maintenance
from service.ops.metrics import MeasuredRequests, Metrics
from service.ops.server import serve_alongside
from service.ops.storage_probe import StorageProbe
from service.presets import routes as preset_routes
from service.settings import Settings
from service.usage import routes as usage_routes
from service.version import installed_version
from service.webhooks import routes as webhook_routes
from service.webhooks.delivery_worker import DeliveryWorker
from service.webhooks.signing import Signer

logger = logging.getLogger(__name__)

UNUSABLE = 2  # the exit code if the settings or the Redis server cannot be used
_EXPOSED_HEADERS = (
    *("Location", "Retry-After", "X-Request-Id", "X-Limit", REPLAYED, openai_routes.POLL_HEADER),
    job_routes.COUNT_HEADER,
    *("ETag", "Accept-Ranges", "Content-Range", "Content-Disposition"),
)
_OPS_ROUTERS = (health.ops_router, docs.router)


def create_app(settings: Settings) -> FastAPI:
    """Create the service. It connects to Redis when it starts up."""
    app = DocumentedAPI(
        title="LongCat-Video",
        summary="Prompts and images in, videos out.",
        version=installed_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url=None,  # `service.openapi.docs` serves the document and a page without external assets
    )
    app.state.backend = backend = Backend.open(settings)
    app.state.exit_code = 0  # of the process
    app.state.is_redis_checked = False  # by `check_redis`
    app.state.openapi = app.openapi
    app.state.shows_details = settings.ops_port is None
    app.state.shows_failures = False
    app.state.storage_probe = StorageProbe(backend.storage)
    app.state.metrics = Metrics(backend, app.state.storage_probe)
    app.state.tracing = open_tracing("longcat-service", wanted=settings.traces)
    _add_middleware(app, settings)
    install_error_handlers(app)
    _add_routes(app, with_ops=settings.ops_port is None)
    return app


def create_ops_app(service: FastAPI) -> FastAPI:
    """Create the app that listens on `OPS_PORT`: metrics, documentation and the details of readiness."""
    app = FastAPI(title=service.title, openapi_url=None, redirect_slashes=False)
    app.state.openapi = service.state.openapi
    app.state.backend = service.state.backend
    app.state.metrics = service.state.metrics
    app.state.shows_details = app.state.shows_failures = True
    app.add_middleware(BrowserGuard, authenticator=service.state.backend.authenticator)
    app.add_middleware(RequestIds)
    install_error_handlers(app)
    _include(app, (health.router, *_OPS_ROUTERS))
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Add the middleware, innermost first."""
    app.add_middleware(ShutdownResponses, is_stopping=lambda: app.state.backend.event_streams.is_closing)
    app.add_middleware(
        BodyDeadlines, timeout_s=settings.body_timeout_s, min_bytes_per_s=settings.body_min_bytes_per_s
    )
    app.add_middleware(BrowserGuard, authenticator=app.state.backend.authenticator)
    if settings.trusted_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.trusted_origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["*"],  # OpenAI's client sends a dozen of its own
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(MeasuredRequests, metrics=app.state.metrics)
    app.add_middleware(TracedRequests, tracing=app.state.tracing)
    app.add_middleware(RequestIds)


def _add_routes(app: FastAPI, *, with_ops: bool) -> None:
    """Add all routes. Those of jobs require an API key before anything of a request's body is read."""
    api_key = [Depends(require_api_key)]
    _include(app, (health.router,))  # first: a router compares a path with every route before the right one
    job_routers = (
        *(job_routes.router, files.router, events.router),
        *(webhook_routes.router, usage_routes.router, preset_routes.router),
    )
    _include(app, job_routers, api_key, error_responses(401, 422, 429))
    _include(app, (openai_routes.router, models.router), api_key, openai_error_responses(400, 401, 429))
    _include(app, (console_session.router,))
    _include(
        app, (console_routes.router,), allows_any_query=True
    )  # links to a page get parameters for statistics
    if with_ops:
        _include(app, _OPS_ROUTERS)


def _include(
    app: FastAPI,
    routers: Iterable[APIRouter],
    dependencies: Sequence[params.Depends] = (),
    responses: dict[int | str, dict[str, Any]] | None = None,
    *,
    allows_any_query: bool = False,
) -> None:
    responses = error_responses(422) if responses is None else responses
    if not allows_any_query:
        dependencies = [*dependencies, Depends(check_query)]
    for router in routers:
        for part in (router, head_routes(router)):
            app.include_router(part, dependencies=dependencies, responses=responses)
            app.state.routes = [*getattr(app.state, "routes", ()), *part.routes]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the background work of the service while it serves.

    Startup fails if the Redis server is too old, or this release is too old for what is in it, unless the
    caller has checked that. It does not fail if Redis cannot be reached yet: requests are answered 503 until
    it can. If it is unfit then, the process ends.
    """
    backend: Backend = app.state.backend
    settings = backend.settings
    try:
        if not app.state.is_redis_checked:
            check_redis(backend.redis, settings.redis_wait_replicas)
            app.state.is_redis_checked = True
        backend.job_store.maintenance.sweep()  # before the first request, so that the clock is right
    except Unavailable:
        logger.warning("Redis cannot be reached yet; requests are answered 503 until it can")
    remove_abandoned_folders(settings.upload_dir)

    def fail() -> None:
        app.state.exit_code = UNUSABLE
        signal.raise_signal(signal.SIGTERM)

    signer = Signer(backend.redis, settings.webhook_secret, settings.webhook_secret_previous)
    async with AsyncExitStack() as stack:
        if settings.ops_port is not None:
            ops = create_ops_app(app)
            await stack.enter_async_context(serve_alongside(ops, settings.ops_host, settings.ops_port))
        stack.enter_context(backend.sandbox).start()
        stack.enter_context(Maintenance(backend, is_checked=app.state.is_redis_checked, fail=fail))
        stack.enter_context(app.state.storage_probe.running())
        stack.enter_context(DeliveryWorker(Outbox(backend.redis), signer, settings))
        yield
    backend.redis.close()
    close_tracing(app.state.tracing)
