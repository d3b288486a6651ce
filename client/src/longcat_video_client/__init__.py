"""Request videos from a LongCat-Video service, follow jobs and download results.

`Client` is for programs without asyncio, `AsyncClient` for those with it. The module `testing` has a fake
service for your tests.
"""

from longcat_video_client.async_client import AsyncClient
from longcat_video_client.client import Client
from longcat_video_client.errors import (
    ApiError,
    Conflict,
    IncompleteDownload,
    InvalidRequest,
    InvalidWebhook,
    JobCancelled,
    JobFailed,
    JobNotReady,
    LongCatVideoError,
    NotFound,
    PermissionDenied,
    RateLimited,
    ServerError,
    ServiceUnavailable,
    Timeout,
    Unauthorized,
    UnexpectedReply,
)
from longcat_video_client.events import Event
from longcat_video_client.models import (
    Capability,
    Cost,
    DayUsage,
    Job,
    JobError,
    Pool,
    Preset,
    Progress,
    Result,
)
from longcat_video_client.options import Input, JobVideo, Options
from longcat_video_client.retries import RetryPolicy
from longcat_video_client.webhooks import WebhookEvent, verify_webhook

__all__ = [
    "ApiError",
    "AsyncClient",
    "Capability",
    "Client",
    "Conflict",
    "Cost",
    "DayUsage",
    "Event",
    "IncompleteDownload",
    "Input",
    "InvalidRequest",
    "InvalidWebhook",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotReady",
    "JobVideo",
    "LongCatVideoError",
    "NotFound",
    "Options",
    "PermissionDenied",
    "Pool",
    "Preset",
    "Progress",
    "RateLimited",
    "Result",
    "RetryPolicy",
    "ServerError",
    "ServiceUnavailable",
    "Timeout",
    "Unauthorized",
    "UnexpectedReply",
    "WebhookEvent",
    "verify_webhook",
]
