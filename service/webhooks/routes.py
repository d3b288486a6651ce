"""Show a job's owner the attempts to deliver its webhooks."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs.store.outbox import Attempt, Outbox
from service.backend import CurrentBackend
from service.http.error_handlers import error_responses

router = APIRouter(tags=["jobs"])


class WebhookLog(BaseModel):
    """All attempts to deliver webhooks to the job's `webhook_url`, the first one first."""

    model_config = ConfigDict(extra="forbid")

    attempts: list[Attempt] = Field(description="`next_at` is the time of the next attempt.")


@router.get("/jobs/{job_id}/webhooks", responses=error_responses(404, 503))
def get_webhooks(job_id: str, backend: CurrentBackend) -> WebhookLog:
    """Return every attempt to deliver the job's webhooks, with its outcome."""
    backend.jobs.get(job_id)
    return WebhookLog(attempts=Outbox(backend.redis).log(job_id))
