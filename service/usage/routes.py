"""Answer `GET /usage`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs.store.usage import usage
from service.backend import CurrentBackend
from service.http.error_handlers import error_responses

router = APIRouter(tags=["jobs"])


class DayUsage(BaseModel):
    """The usage of an owner on a day."""

    model_config = ConfigDict(extra="forbid")

    day: date = Field(description="The day in UTC on which the jobs ended.")
    owner: str
    gpu_s: float = Field(description="Seconds of GPU time of these jobs, all attempts together.")
    lost_gpu_s: float = Field(
        description="The part of it whose work was lost: jobs were requeued before it was saved."
    )
    costs: dict[str, float] = Field(
        description="Cost of these jobs by currency, at the price that held when each was submitted."
    )


class UsageView(BaseModel):
    """The usage of the last 31 days."""

    model_config = ConfigDict(extra="forbid")

    usage: list[DayUsage] = Field(description="The latest day first, without days on which nothing was used.")


@router.get("/usage", responses=error_responses(503))
def get_usage(backend: CurrentBackend) -> UsageView:
    """Return the GPU time used on each day, and its cost.

    It is that of your key's owner. With the key of an admin, and while the service has no API keys, it is
    that of all owners.
    """
    owner = None if backend.caller.is_admin else backend.caller.owner
    return UsageView(usage=[DayUsage(**asdict(each)) for each in usage(backend.redis, owner)])
