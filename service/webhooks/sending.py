"""One webhook, once over the wire: to public addresses alone, without following redirects.

Called by `service.webhooks.courier`; the way to the host is that of `service.inputs.fetch`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from pydantic import BaseModel

from jobs.store.outbox import Delivery
from service.inputs.fetch import FetchLimits, checked, open_connection, target_of
from service.jobs.views import JobView
from service.webhooks.signing import Signer


class Payload(BaseModel):
    """What a receiver gets: what happened (`job.succeeded`, …), when, and the job as it was then."""

    type: str
    timestamp: datetime
    data: JobView

    @classmethod
    def of(cls, delivery: Delivery, public_url: str) -> Payload:
        """The same bytes at every attempt."""
        data = JobView.of(delivery.job, None, public_url)
        return cls(type=f"job.{delivery.event}", timestamp=delivery.at, data=data)


def send(delivery: Delivery, body: bytes, signer: Signer, limits: FetchLimits) -> int:
    """Post a delivery and give the status that came back.

    Raises UnusableInput if the host cannot be reached or is not public, Unavailable without a secret.
    """
    assert delivery.job.webhook_url
    now_s = int(datetime.now(UTC).timestamp())
    headers = {"Content-Type": "application/json", "User-Agent": "longcat-video"}
    headers |= signer.headers(delivery.job.owner, delivery.id, now_s, body)
    parts = checked(delivery.job.webhook_url)
    deadline = time.monotonic() + limits.total_timeout_s
    with open_connection(parts, limits, deadline) as connection:
        connection.request("POST", target_of(parts), body, headers)
        return connection.getresponse().status
