"""Open what the routes need, once per process, and give it to each request with the rights of its client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Self

from fastapi import BackgroundTasks, Depends, Request
from redis import Redis

from jobs.connect import connect
from jobs.errors import InvalidRequest
from jobs.fleet import Fleet, FleetReader
from jobs.queue import TicketQueue
from jobs.storage.base import Storage, open_storage
from jobs.store.client import JobClient
from jobs.store.idempotency import IdempotencyKeys
from jobs.store.job_store import JobStore
from jobs.store.memory import MemoryGuard
from jobs.store.scripts import Replication
from model.media.sandbox import Sandbox
from service.errors import Unauthorized
from service.http.capacity import Capacities
from service.http.origins import Origins
from service.jobs.event_streams import EventStreams
from service.keys.api_keys import ApiKeys, Caller
from service.keys.authentication import Authenticator, Credentials
from service.keys.sessions import Sessions
from service.settings import Settings
from service.webhooks.url_checker import WebhookUrlChecker


@dataclass(frozen=True)
class Backend:
    """Connections and limits that all requests share. Safe between threads.

    It restricts nothing: routes of clients take a `RequestBackend`.
    """

    settings: Settings
    redis: Redis
    authenticator: Authenticator
    job_store: JobStore
    idempotency_keys: IdempotencyKeys
    tickets: TicketQueue
    memory_guard: MemoryGuard
    storage: Storage
    capacities: Capacities
    webhook_url_checker: WebhookUrlChecker
    sandbox: Sandbox
    fleet_reader: FleetReader
    event_streams: EventStreams

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Create the connections that the settings name. Nothing is sent to Redis yet."""
        redis = connect(settings.redis_address, settings.redis_patience_s)
        api_keys = ApiKeys(redis, settings.api_key)
        sessions = Sessions(redis, api_keys, settings.session_s)
        job_store = JobStore(
            redis,
            retention_s=settings.retention_s,
            max_attempts=settings.max_attempts,
            late_upload_s=settings.late_upload_s,
            quotas=settings.quotas,
            replication=Replication(settings.redis_wait_replicas, settings.redis_patience_s / 2),
        )
        return cls(
            settings=settings,
            redis=redis,
            authenticator=Authenticator(settings, api_keys, sessions, Origins(settings)),
            job_store=job_store,
            idempotency_keys=IdempotencyKeys(redis),
            tickets=TicketQueue(redis),
            memory_guard=MemoryGuard(redis, settings.redis_memory_reserve),
            storage=open_storage(settings),
            capacities=Capacities.from_settings(settings),
            webhook_url_checker=WebhookUrlChecker(allow_private=settings.webhook_private_hosts),
            sandbox=Sandbox(settings.max_decodes, settings.decode_memory_bytes),
            fleet_reader=FleetReader(redis, settings.configured_capability),
            event_streams=EventStreams(redis, settings),
        )

    def fleet(self) -> Fleet:
        """Return the known pools, among them the one that `CAPABILITY_FILE` names. Raises Unavailable."""
        return self.fleet_reader.current()


@dataclass(frozen=True, kw_only=True)
class RequestBackend(Backend):
    """The backend of one request, restricted to what its client may see and do.

    Attributes:
        caller: the client.
        jobs: the jobs that the client may see and change.
        is_authorized: checks again whether the request may still be served, for responses that take long.
            Raises Unavailable.
        run_after_response: runs a task after the response is sent.
    """

    caller: Caller
    jobs: JobClient
    is_authorized: Callable[[], bool]
    run_after_response: Callable[[Callable[[], None]], None]

    @classmethod
    def of(
        cls,
        backend: Backend,
        caller: Caller,
        is_authorized: Callable[[], bool],
        run_after_response: Callable[[Callable[[], None]], None],
    ) -> Self:
        """Return the backend of a request of this client: all jobs for an admin, else those of its owner."""
        all_jobs = backend.job_store.client
        return cls(
            **vars(backend),
            caller=caller,
            jobs=all_jobs if caller.is_admin else all_jobs.for_owner(caller.owner),
            is_authorized=is_authorized,
            run_after_response=run_after_response,
        )

    def without_delay(self) -> Self:
        """Return this backend for a request that waits for its job: tasks run before the response."""
        return replace(self, run_after_response=lambda task: task())

    def jobs_of(self, owner: str) -> JobClient:
        """Return the jobs of one owner. Raises InvalidRequest unless the client may see them."""
        if not self.caller.is_admin and owner != self.caller.owner:
            raise InvalidRequest("owner: this API key sees the jobs of its own owner only", "owner")
        return self.jobs.for_owner(owner)


async def _app_backend(request: Request) -> Backend:  # FastAPI would run a plain function in a thread
    backend: Backend = request.app.state.backend
    return backend


AppBackend = Annotated[Backend, Depends(_app_backend)]
"""The backend without authentication, for routes that are open to everybody."""


def require_api_key(
    request: Request, backend: AppBackend, credentials: Credentials, tasks: BackgroundTasks
) -> RequestBackend:
    """Authenticate the request and count it against its owner's rate limit.

    Raises:
        Unauthorized: there is no valid API key or session.
        LimitReached: requests come too fast.
        Unavailable: Redis cannot be reached.
    """
    caller = backend.authenticator.authenticate(request, credentials)
    backend.job_store.client.count_request(caller.owner)

    def is_authorized() -> bool:
        with suppress(Unauthorized):
            return backend.authenticator.authenticate(request, credentials).owner == caller.owner
        return False

    return RequestBackend.of(backend, caller, is_authorized, tasks.add_task)


CurrentBackend = Annotated[RequestBackend, Depends(require_api_key)]
"""The backend of the authenticated request; FastAPI resolves it once per request."""
