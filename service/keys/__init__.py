"""API keys: who may ask, and in whose name. `python -m service.keys` makes, lists and revokes them.

Redis holds only a digest of each key. A key is 32 random bytes, so a plain hash is enough: there is nothing
to guess. Revoked keys stay on the list, so that a service which once had keys never falls open.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pydantic import SecretStr
from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import LongCatError

KEYS = "longcat:keys"
PRESET_OWNER = "default"
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"lc_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NOBODYS = hashlib.sha256().hexdigest()


class UnfitOwner(LongCatError):
    """A name that no owner can have."""

    code = "unfit_owner"


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key: everything but the key. Times are RFC 3339."""

    id: str
    owner: str
    digest: str
    created_at: str
    revoked_at: str | None = None


class ApiKeys:
    """The keys in Redis, and one from the settings, if there is one.

    Safe between threads. Raises Unavailable while Redis cannot be reached.
    """

    def __init__(self, redis: Redis, preset: SecretStr | None = None) -> None:
        self._redis = redis
        self._preset = preset and _digest(preset.get_secret_value())

    def create(self, owner: str) -> str:
        """A new key in this owner's name, which is told this one time. Raises UnfitOwner."""
        if not _OWNER.fullmatch(owner):
            raise UnfitOwner(f"an owner must match {_OWNER.pattern}, which {owner!r} does not")
        key_id = secrets.token_hex(6)
        key = f"lc_{key_id}_{secrets.token_urlsafe(32)}"
        self._store(ApiKey(key_id, owner, _digest(key), _now()))
        return key

    def all(self) -> list[ApiKey]:
        """Every key ever made, the oldest first."""
        with redis_reached():
            stored = self._redis.hvals(KEYS)
        return sorted((_read(document) for document in stored), key=lambda key: key.created_at)

    def revoke(self, key_id: str) -> bool:
        """End a key at once, everywhere; False if there is none."""
        found = self._find(key_id)
        if found and not found.revoked_at:
            self._store(replace(found, revoked_at=_now()))
        return found is not None

    def owner_of(self, key: str) -> str | None:
        """Who has this key, None if nobody does (any more)."""
        digest = _digest(key)
        if self._preset and hmac.compare_digest(digest, self._preset):
            return PRESET_OWNER
        shape = _KEY.fullmatch(key)
        found = self._find(shape[1]) if shape else None
        genuine = hmac.compare_digest(digest, found.digest if found else _NOBODYS)
        return found.owner if found and genuine and not found.revoked_at else None

    def any_made(self) -> bool:
        """Whether there is a key, or ever was."""
        if self._preset:
            return True
        with redis_reached():
            return bool(self._redis.exists(KEYS))

    def _find(self, key_id: str) -> ApiKey | None:
        with redis_reached():
            document = self._redis.hget(KEYS, key_id)
        return None if document is None else _read(document)

    def _store(self, key: ApiKey) -> None:
        with redis_reached():
            self._redis.hset(KEYS, key.id, json.dumps(asdict(key)))


def _read(document: bytes | str) -> ApiKey:
    return ApiKey(**json.loads(document))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
