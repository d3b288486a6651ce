"""Open what the routes need, once per process, and give it to each request under its API key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from fastapi import BackgroundTasks, Depends, Request
from redis import Redis

from jobs.connect import connect
from jobs.errors import InvalidRequest
from jobs.fleet import Fleet, FleetReader
from jobs.queue import TicketQueue
from jobs.record import Job, Progress, QueueEstimate
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
from service.jobs.views import JobView
from service.keys.api_keys import ApiKeys, Caller
from service.keys.authentication import ANONYMOUS, Authenticator, Credentials
from service.keys.sessions import Sessions
from service.settings import Settings
from service.webhooks.url_checker import WebhookUrlChecker

_NO_GROUP = "no live group can run this job"
_LONGEST_ETA_S = 366 * 86400.0


def _run_now(task: Callable[[], None]) -> None:
    task()


@dataclass(frozen=True)
class Backend:
    """Connections and limits that all requests share. Safe between threads.

    Attributes:
        jobs: the jobs that the request may see and change: those of its `owner`, or all for an admin.
        job_store: the records of all jobs, for maintenance.
        owner: in whose name the request is made.
        high_priority_allowed: whether the request may ask for high priority.
        is_admin: whether the request may see and change the jobs of all owners.
        is_authorized: checks again whether the request may still be served, for responses that take long.
            Raises Unavailable.
        run_after_response: runs a task after the response is sent.
    """

    settings: Settings
    redis: Redis
    authenticator: Authenticator
    job_store: JobStore
    jobs: JobClient
    idempotency_keys: IdempotencyKeys
    tickets: TicketQueue
    memory_guard: MemoryGuard
    storage: Storage
    capacities: Capacities
    webhook_url_checker: WebhookUrlChecker
    sandbox: Sandbox
    fleet_reader: FleetReader
    owner: str = ANONYMOUS
    high_priority_allowed: bool = True
    is_admin: bool = True
    is_authorized: Callable[[], bool] = lambda: True
    run_after_response: Callable[[Callable[[], None]], None] = _run_now

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
            jobs=job_store.client,
            idempotency_keys=IdempotencyKeys(redis),
            tickets=TicketQueue(redis),
            memory_guard=MemoryGuard(redis, settings.redis_memory_reserve),
            storage=open_storage(settings),
            capacities=Capacities.from_settings(settings),
            webhook_url_checker=WebhookUrlChecker(allow_private=settings.webhook_private_hosts),
            sandbox=Sandbox(settings.max_decodes, settings.decode_memory_bytes),
            fleet_reader=FleetReader(redis, settings.configured_capability),
        )

    def for_caller(self, caller: Caller) -> Backend:
        """Return this backend restricted to what a client may see and do."""
        return replace(
            self,
            owner=caller.owner,
            jobs=self.jobs if caller.is_admin else self.jobs.for_owner(caller.owner),
            high_priority_allowed=caller.high_priority_allowed,
            is_admin=caller.is_admin,
        )

    def without_delay(self) -> Backend:
        """Return this backend for a request that waits for its job: tasks run before the response."""
        return replace(self, run_after_response=_run_now)

    def jobs_of(self, owner: str) -> JobClient:
        """Return the jobs of one owner. Raises InvalidRequest unless the request may see them."""
        if not self.is_admin and owner != self.owner:
            raise InvalidRequest("owner: this API key sees the jobs of its own owner only", "owner")
        return self.jobs.for_owner(owner)

    def fleet(self) -> Fleet:
        """Return the known pools, among them the one that `CAPABILITY_FILE` names. Raises Unavailable."""
        return self.fleet_reader.current()

    def view(self, job: Job) -> JobView:
        """Return a job as clients see it, with its queue position and estimate."""
        return self.views([job])[0]

    def views(self, jobs: Sequence[Job]) -> list[JobView]:
        """Return jobs as clients see them. All estimates take one command.

        The fleet may be a second old: it has a record for each group, too many to read for each poll.
        """
        estimates: dict[str, QueueEstimate] = {}
        waiting_for: dict[str, str] = {}
        if queued := [job for job in jobs if job.status == "queued"]:
            fleet = self.fleet_reader.recent()
            estimates = self.jobs.estimates([job.id for job in queued], fleet)
            waiting_for = {job.id: _NO_GROUP for job in queued if not fleet.pools_for(job.requirement)}
        return [self._view(job, estimates.get(job.id), waiting_for.get(job.id)) for job in jobs]

    def with_queue_estimate(self, job: Job, fleet: Fleet) -> tuple[Job, int | None]:
        """Return the job with an ETA in its progress where there is an estimate, and its queue position.

        The position is None unless the job is queued.
        """
        estimate = self.jobs.estimate(job.id, fleet) if job.status == "queued" else None
        return _with_eta(job, estimate), estimate.position if estimate else None

    def _view(self, job: Job, estimate: QueueEstimate | None, waiting_for: str | None) -> JobView:
        position = estimate.position if estimate else None
        job = _with_eta(job, estimate)
        return JobView.of(
            job, position, self.settings.public_url, waiting_for, _predicted_finish(job, datetime.now(UTC))
        )


def _with_eta(job: Job, estimate: QueueEstimate | None) -> Job:
    if estimate is None or estimate.eta_s is None:
        return job
    progress = Progress(phase="load", num_segments=job.order.plan.num_segments, eta_s=estimate.eta_s)
    return job.model_copy(update={"progress": progress})


def _predicted_finish(job: Job, now: datetime) -> datetime | None:
    if job.ended or job.progress is None or job.progress.eta_s is None:
        return None
    return now + timedelta(seconds=min(job.progress.eta_s, _LONGEST_ETA_S))


async def _app_backend(request: Request) -> Backend:  # FastAPI would run a plain function in a thread
    backend: Backend = request.app.state.backend
    return backend


AppBackend = Annotated[Backend, Depends(_app_backend)]
"""The backend without authentication, for routes that are open to everybody."""


def require_api_key(
    request: Request, backend: AppBackend, credentials: Credentials, tasks: BackgroundTasks
) -> Backend:
    """Authenticate the request and count it against its owner's rate limit.

    Returns:
        The backend restricted to what the request may see and do.

    Raises:
        Unauthorized: there is no valid API key or session.
        LimitReached: requests come too fast.
        Unavailable: Redis cannot be reached.
    """
    caller = backend.authenticator.authenticate(request, credentials)
    backend.jobs.count_request(caller.owner)

    def is_authorized() -> bool:
        with suppress(Unauthorized):
            return backend.authenticator.authenticate(request, credentials).owner == caller.owner
        return False

    return replace(backend.for_caller(caller), is_authorized=is_authorized, run_after_response=tasks.add_task)


CurrentBackend = Annotated[Backend, Depends(require_api_key)]
"""The backend of the authenticated request; FastAPI resolves it once per request."""
