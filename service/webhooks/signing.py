"""Sign webhooks, and manage the secrets for it.

Each owner has a secret, derived from the service's, so no owner can sign for another. To rotate it, a counter
that goes into the derivation is increased. During an overlap webhooks carry two signatures, by the new secret
and by the previous one. Receivers accept a webhook if either is valid.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pydantic import SecretStr, TypeAdapter
from redis import Redis
from standardwebhooks import Webhook

from jobs.connect import redis_reached
from jobs.errors import UnreadableRecord
from jobs.store.metrics import report_unreadable

SERVICE_SECRET = "longcat:webhook_secret"  # noqa: S105 - the Redis key, not the secret
ROTATIONS = "longcat:webhook_secret:rotations"
_PREFIX = "whsec_"


@dataclass(frozen=True)
class Rotation:
    """The number of rotations of an owner's secret, and the Unix time until which the previous one signs."""

    number: int = 0
    previous_until_s: float = 0.0
    schema_version: int = 1


_ROTATION = TypeAdapter(Rotation)


class Signer:
    """Signs webhooks for all owners. Methods raise Unavailable while Redis cannot be reached.

    Args:
        redis: holds the rotations and, without `secret`, the service's secret.
        secret: the service's secret from the settings; one is generated if it is absent.
        previous_secret: the service's secret before it was changed. It signs as well.
        clock: returns the Unix time; replaced in tests.
    """

    def __init__(
        self,
        redis: Redis,
        secret: SecretStr | None,
        previous_secret: SecretStr | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._previous_secret = previous_secret
        self._clock = clock

    def secret_of(self, owner: str) -> str:
        """Return the secret with which this owner verifies webhooks: `whsec_…`."""
        return self._secrets_of(owner)[0]

    def rotate(self, owner: str, overlap_s: float) -> str:
        """Create a new secret for an owner and return it. The previous one also signs for `overlap_s`.

        Secrets before the previous one no longer sign.
        """
        rotation = Rotation(self._rotation_of(owner).number + 1, self._clock() + overlap_s)
        with redis_reached():
            self._redis.hset(ROTATIONS, owner, json.dumps(asdict(rotation)))
        return self.secret_of(owner)

    def headers(self, owner: str, webhook_id: str, sent_at_s: int, body: str) -> dict[str, str]:
        """Return the headers that identify and sign a webhook. `sent_at_s` is the Unix time."""
        sent_at = datetime.fromtimestamp(sent_at_s, UTC)
        signatures = (Webhook(secret).sign(webhook_id, sent_at, body) for secret in self._secrets_of(owner))
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(sent_at_s),
            "webhook-signature": " ".join(signatures),
        }

    def _secrets_of(self, owner: str) -> list[str]:
        """Return all secrets that sign for an owner now, the newest first."""
        rotation = self._rotation_of(owner)
        numbers = [rotation.number]
        if rotation.number and self._clock() < rotation.previous_until_s:
            numbers.append(rotation.number - 1)
        service_secrets = [self._service_secret()]
        if self._previous_secret:
            service_secrets.append(self._previous_secret.get_secret_value())
        return [_derive(secret, owner, number) for secret in service_secrets for number in numbers]

    def _rotation_of(self, owner: str) -> Rotation:
        with redis_reached():
            document = self._redis.hget(ROTATIONS, owner)
        if document is None:
            return Rotation()
        try:
            return _ROTATION.validate_json(document)
        except ValueError as error:
            unreadable = UnreadableRecord(f"the rotation of the webhook secret of {owner}")
            report_unreadable(self._redis, "webhook secret", unreadable)
            raise unreadable from error

    def _service_secret(self) -> str:
        """Return the secret from the settings, or the one that the first process to need one generated."""
        if self._secret:
            return self._secret.get_secret_value()
        with redis_reached():
            self._redis.set(SERVICE_SECRET, _PREFIX + _base64(secrets.token_bytes(32)), nx=True)
            stored = self._redis.get(SERVICE_SECRET)
        assert stored is not None
        return stored.decode() if isinstance(stored, bytes) else stored


def _derive(service_secret: str, owner: str, number: int) -> str:
    purpose = f"webhooks of {owner}" + (f", rotation {number}" if number else "")
    key = base64.b64decode(service_secret.removeprefix(_PREFIX))
    return _PREFIX + _base64(hmac.digest(key, purpose.encode(), "sha256"))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
