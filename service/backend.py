"""What the routes stand on: settings, job_store, queue and storage, opened once for a process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Self

from fastapi import BackgroundTasks, Depends, Request
from redis import Redis

from jobs.connect import connect_with_deadline
from jobs.queue import TicketQueue
from jobs.record import Job, Progress
from jobs.storage.base import Storage, open_storage
from jobs.store.idempotency import IdempotencyKeys
from jobs.store.job_store import JobStore
from model.media.sandbox import Sandbox
from service.errors import Unauthorized
from service.http.capacity import Capacities
from service.http.origins import Origins
from service.jobs.views import JobView
from service.keys import ApiKeys
from service.keys.authentication import EVERYBODY, Authenticator, Credentials
from service.keys.sessions import Sessions
from service.settings import Settings
from service.webhooks.receivers import WebhookReceivers

Action = Callable[[], None]


def _at_once(action: Action) -> None:
    action()


@dataclass(frozen=True)
class Backend:
    """Everything outside this process; shared by all requests, safe between threads.

    A request gets it in the name of its `owner`: then the job_store has his jobs alone, and `afterwards`
    does what the answer need not wait for. `is_authorized` checks again whether the request may still be
    served, for answers that take long; it raises Unavailable.
    """

    settings: Settings
    redis: Redis
    authenticator: Authenticator
    job_store: JobStore
    keys: IdempotencyKeys
    tickets: TicketQueue
    storage: Storage
    capacities: Capacities
    webhook_receivers: WebhookReceivers
    sandbox: Sandbox
    owner: str = EVERYBODY
    may_order_high: bool = True
    is_authorized: Callable[[], bool] = lambda: True
    afterwards: Callable[[Action], None] = _at_once

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Connect to what the settings name; Redis is not asked anything yet."""
        redis = connect_with_deadline(settings.redis_url, settings.redis_patience_s)
        api_keys = ApiKeys(redis, settings.api_key)
        sessions = Sessions(redis, api_keys, settings.session_s)
        return cls(
            settings=settings,
            redis=redis,
            authenticator=Authenticator(settings, api_keys, sessions, Origins(settings)),
            job_store=JobStore(
                redis,
                retention_s=settings.retention_s,
                max_attempts=settings.max_attempts,
                late_upload_s=settings.late_upload_s,
                quotas=settings.quotas,
            ),
            keys=IdempotencyKeys(redis),
            tickets=TicketQueue(redis),
            storage=open_storage(settings),
            capacities=Capacities.of(settings),
            webhook_receivers=WebhookReceivers(allow_private=settings.webhook_private_hosts),
            sandbox=Sandbox(settings.max_decodes, settings.decode_memory_bytes),
        )

    def of(self, owner: str) -> Backend:
        """The same in this owner's name."""
        return (
            self
            if owner == EVERYBODY
            else replace(self, owner=owner, job_store=self.job_store.for_owner(owner))
        )

    def show(self, job: Job) -> JobView:
        """A job as clients see it, with its place in the queue."""
        job, position = self.foresee(job)
        return JobView.of(job, position, self.settings.public_url)

    def foresee(self, job: Job) -> tuple[Job, int | None]:
        """A queued job with its place, and an ETA in its progress if one can be told; others unchanged."""
        outlook = self.job_store.client.estimate(job.id) if job.status == "queued" else None
        if outlook is None:
            return job, None
        if outlook.eta_s is None:
            return job, outlook.position
        progress = Progress(phase="load", num_segments=job.order.plan.num_segments, eta_s=outlook.eta_s)
        return job.model_copy(update={"progress": progress}), outlook.position


async def _opened(request: Request) -> Backend:  # FastAPI would call a plain function in a thread
    backend: Backend = request.app.state.backend
    return backend


Opened = Annotated[Backend, Depends(_opened)]  # for anybody


def admitted(request: Request, backend: Opened, credentials: Credentials, tasks: BackgroundTasks) -> Backend:
    """The backend in the name of whoever asks. Raises Unauthorized, LimitReached, Unavailable."""
    grant = backend.authenticator.authenticate(request, credentials)
    backend.job_store.client.count_request(grant.owner)

    def is_authorized() -> bool:
        with suppress(Unauthorized):
            return backend.authenticator.authenticate(request, credentials).owner == grant.owner
        return False

    return replace(
        backend.of(grant.owner),
        may_order_high=grant.high_priority,
        is_authorized=is_authorized,
        afterwards=tasks.add_task,
    )


Served = Annotated[Backend, Depends(admitted)]  # for who is admitted, once for each request
