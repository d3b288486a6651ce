"""Verify webhooks of the service, which are signed as Standard Webhooks specifies."""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from longcat_video_client.errors import InvalidWebhook
from longcat_video_client.models import Job

_PREFIX = "whsec_"
_VERSION = "v1"
_UNIX_TIME = re.compile("[0-9]{1,15}")


class WebhookEvent(BaseModel):
    """A verified webhook.

    Attributes:
        id: the same for each delivery of the same event.
        type: `job.started`, `job.succeeded`, `job.failed` or `job.cancelled`.
        timestamp: when the event happened.
        job: the job at that time.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    type: str
    timestamp: datetime
    job: Job


class _Payload(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str
    timestamp: datetime
    data: Job


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    *,
    tolerance_s: float = 300.0,
    now_s: float | None = None,
) -> WebhookEvent:
    """Return the event in a webhook if its signature is valid.

    Args:
        body: the body as it arrived, before any parsing.
        headers: the headers of the request, in any case.
        secrets: the secret (`whsec_…`), or several: during a rotation, the new and the old one.
        tolerance_s: how old a webhook may be, and how far in the future, so that a recorded one is of no use.
        now_s: the Unix time; by default that of the clock.

    Raises:
        InvalidWebhook: the signature is missing or wrong, the webhook is too old, or it contains no job.
        ValueError: a secret is malformed.
    """
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    given = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id, sent_at, signatures = (
            given[f"webhook-{part}"] for part in ("id", "timestamp", "signature")
        )
    except KeyError as error:
        raise InvalidWebhook(f"the header {error.args[0]} is missing") from error
    if not _UNIX_TIME.fullmatch(sent_at):
        raise InvalidWebhook("webhook-timestamp is not a Unix time")
    if abs((time.time() if now_s is None else now_s) - int(sent_at)) > tolerance_s:
        raise InvalidWebhook("the webhook is too old, or this machine's clock is wrong")
    signed = f"{webhook_id}.{sent_at}.".encode() + body
    expected = [hmac.digest(key, signed, "sha256") for key in keys]
    found = [signature for text in signatures.split() if (signature := _signature(text))]
    if not any(hmac.compare_digest(one, other) for one in expected for other in found):
        raise InvalidWebhook("no signature is valid")
    try:
        payload = _Payload.model_validate_json(body)
    except ValidationError as error:
        raise InvalidWebhook("the webhook contains no job") from error
    return WebhookEvent(id=webhook_id, type=payload.type, timestamp=payload.timestamp, job=payload.data)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError as error:
        raise ValueError("a webhook secret is whsec_ and base64") from error
    if not key:
        raise ValueError("the webhook secret is empty")
    return key


def _signature(text: str) -> bytes | None:
    version, _, signature = text.partition(",")
    if version != _VERSION:
        return None
    try:
        return base64.b64decode(signature, validate=True)
    except ValueError:  # of another scheme, or malformed
        return None
