"""Signatures of webhooks, as the Standard Webhooks specification says (https://www.standardwebhooks.com).

Each owner has a secret of its own, which is made from that of the service: nothing more is to be stored, and
no owner can sign for another.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from pydantic import SecretStr
from redis import Redis

from jobs.connect import redis_reached

MASTER_KEY = "longcat:webhook_secret"
_PREFIX = "whsec_"


class Signer:
    """Signs in the name of the service that has these settings. Raises Unavailable."""

    def __init__(self, redis: Redis, preset: SecretStr | None) -> None:
        self._redis = redis
        self._preset = preset

    def secret_of(self, owner: str) -> str:
        """What this owner verifies webhooks with: `whsec_…`."""
        master = base64.b64decode(self._master().removeprefix(_PREFIX))
        return _PREFIX + _base64(hmac.digest(master, f"webhooks of {owner}".encode(), "sha256"))

    def headers(self, owner: str, webhook_id: str, at_s: int, body: bytes) -> dict[str, str]:
        """The headers that go with this body."""
        key = base64.b64decode(self.secret_of(owner).removeprefix(_PREFIX))
        signed = f"{webhook_id}.{at_s}.".encode() + body
        signature = _base64(hmac.new(key, signed, hashlib.sha256).digest())
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": f"v1,{signature}",
        }

    def _master(self) -> str:
        """The secret from the settings, or the one that the first process made that needed one."""
        if self._preset:
            return self._preset.get_secret_value()
        with redis_reached():
            self._redis.set(MASTER_KEY, _PREFIX + _base64(secrets.token_bytes(32)), nx=True)
            stored = self._redis.get(MASTER_KEY)
        assert stored is not None
        return stored.decode() if isinstance(stored, bytes) else stored


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
