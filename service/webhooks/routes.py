"""What became of a job's webhooks, for its owner."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs.store.outbox import Attempt, Outbox
from service.backend import Served
from service.errors import documented

router = APIRouter(tags=["jobs"])


class WebhookLog(BaseModel):
    """Every attempt to tell `webhook_url`, the first one first."""

    model_config = ConfigDict(extra="forbid")

    attempts: list[Attempt] = Field(description="`next_at`: when it is tried again.")


@router.get("/jobs/{job_id}/webhooks", responses=documented(404, 503))
def get_webhooks(job_id: str, backend: Served) -> WebhookLog:
    """What was sent to the job's `webhook_url`, and how it went."""
    backend.job_store.client.get(job_id)
    return WebhookLog(attempts=Outbox(backend.redis).log(job_id))
