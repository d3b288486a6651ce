"""Signatures of webhooks, as the Standard Webhooks specification says (https://www.standardwebhooks.com).

Each owner has a secret of its own, derived from that of the service, so no owner can sign for another. An
owner's secret is rotated by a number that goes into the derivation. For a while afterwards webhooks carry two
signatures, by the new secret and by the one before; receivers accept a webhook if either is good.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pydantic import SecretStr
from redis import Redis

from jobs.connect import redis_reached

MASTER_KEY = "longcat:webhook_secret"
ROTATIONS = "longcat:webhook_secret:rotations"
_PREFIX = "whsec_"


@dataclass(frozen=True)
class Rotation:
    """How often an owner's secret was rotated, and until when (Unix time) the one before also signs."""

    number: int = 0
    previous_until_s: float = 0.0


class Signer:
    """Signs in the name of the service that has these settings. Raises Unavailable."""

    def __init__(
        self,
        redis: Redis,
        preset: SecretStr | None,
        previous: SecretStr | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._preset = preset
        self._previous = previous
        self._clock = clock

    def secret_of(self, owner: str) -> str:
        """Return what this owner verifies webhooks with: `whsec_…`."""
        return self._secrets_of(owner)[0]

    def rotate(self, owner: str, overlap_s: float) -> str:
        """Give an owner a new secret and return it; the one before also signs for `overlap_s`.

        A secret before that one no longer signs.
        """
        rotation = Rotation(self._rotation_of(owner).number + 1, self._clock() + overlap_s)
        with redis_reached():
            self._redis.hset(ROTATIONS, owner, json.dumps(asdict(rotation)))
        return self.secret_of(owner)

    def headers(self, owner: str, webhook_id: str, at_s: int, body: bytes) -> dict[str, str]:
        """Return the headers that go with this body."""
        signed = f"{webhook_id}.{at_s}.".encode() + body
        signatures = (f"v1,{_signature(secret, signed)}" for secret in self._secrets_of(owner))
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": " ".join(signatures),
        }

    def _secrets_of(self, owner: str) -> list[str]:
        """Return all secrets that sign for an owner now, the newest first."""
        rotation = self._rotation_of(owner)
        numbers = [rotation.number]
        if rotation.number and self._clock() < rotation.previous_until_s:
            numbers.append(rotation.number - 1)
        masters = [self._master(), *([self._previous.get_secret_value()] if self._previous else [])]
        return [_derived(master, owner, number) for master in masters for number in numbers]

    def _rotation_of(self, owner: str) -> Rotation:
        with redis_reached():
            document = self._redis.hget(ROTATIONS, owner)
        if document is None:
            return Rotation()
        stored = json.loads(document)
        return Rotation(stored["number"], stored["previous_until_s"])

    def _master(self) -> str:
        """Return the secret from the settings, or the one that the first process made that needed one."""
        if self._preset:
            return self._preset.get_secret_value()
        with redis_reached():
            self._redis.set(MASTER_KEY, _PREFIX + _base64(secrets.token_bytes(32)), nx=True)
            stored = self._redis.get(MASTER_KEY)
        assert stored is not None
        return stored.decode() if isinstance(stored, bytes) else stored


def _derived(master: str, owner: str, number: int) -> str:
    purpose = f"webhooks of {owner}" + (f", rotation {number}" if number else "")
    key = base64.b64decode(master.removeprefix(_PREFIX))
    return _PREFIX + _base64(hmac.digest(key, purpose.encode(), "sha256"))


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return _base64(hmac.new(key, signed, hashlib.sha256).digest())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
