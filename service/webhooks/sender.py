"""Post one webhook: to public addresses only, without following redirects."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from pydantic import BaseModel

from jobs.store.outbox import Delivery
from service.jobs.views import JobView
from service.outgoing.connection import OutgoingLimits, open_connection, parse_url, request_target
from service.webhooks.signing import Signer


class Payload(BaseModel):
    """The body of a webhook: its event (`job.succeeded`, …), the time, and the job at that time."""

    type: str
    timestamp: datetime
    data: JobView

    @classmethod
    def of(cls, delivery: Delivery, public_url: str) -> Payload:
        """Build the payload. It is the same for every attempt."""
        data = JobView.of(delivery.job, None, public_url)
        return cls(type=f"job.{delivery.event}", timestamp=delivery.at, data=data)


def send_webhook(delivery: Delivery, signer: Signer, limits: OutgoingLimits, public_url: str) -> int:
    """Post a webhook and return the status of the response.

    Raises:
        UnusableInput: the host cannot be reached, is too slow or is not public.
        Unavailable: the secret to sign with cannot be read.
    """
    assert delivery.job.webhook_url
    body = Payload.of(delivery, public_url).model_dump_json()
    now_s = int(datetime.now(UTC).timestamp())
    headers = {"Content-Type": "application/json", "User-Agent": "longcat-video"}
    headers |= signer.headers(delivery.job.owner, delivery.id, now_s, body)
    parts = parse_url(delivery.job.webhook_url)
    deadline = time.monotonic() + limits.total_timeout_s
    with open_connection(parts, limits, deadline) as connection:
        connection.request("POST", request_target(parts), body.encode(), headers)
        return connection.getresponse().status
