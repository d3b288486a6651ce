"""API keys: create, list, revoke and verify them. `python -m service.keys` is their command line.

Redis holds only a digest of each key. A key is 32 random bytes, so a plain SHA-256 is enough: it cannot be
guessed. Revoked and expired keys are kept, so that a service which once had keys never serves without one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr, TypeAdapter
from redis import Redis
from redis.exceptions import RedisError

from jobs.connect import redis_reached
from jobs.errors import LongCatError, UnreadableRecord
from jobs.store.metrics import report_unreadable

KEYS = "longcat:keys"
LAST_USED = "longcat:keys:last_used"
PRESET_OWNER = "default"
PRESET_ID = "preset"
_LAST_USED_RESOLUTION = timedelta(minutes=1)
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"lc_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_DIGEST_OF_NO_KEY = hashlib.sha256().hexdigest()


class InvalidOwner(LongCatError):
    """The owner's name contains characters that are not allowed, or is too long."""

    code = "unfit_owner"


@dataclass(frozen=True)
class ApiKey:
    """A stored key, without its secret. Times are RFC 3339 in UTC."""

    id: str
    owner: str
    digest: str
    created_at: str
    revoked_at: str | None = None
    expires_at: str | None = None
    high_priority: bool = False
    admin: bool = False
    last_used_at: str | None = None
    schema_version: int = 2

    @property
    def is_valid(self) -> bool:
        """Check that the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or _now() < _time(self.expires_at))


@dataclass(frozen=True)
class Caller:
    """An authenticated client.

    Attributes:
        key_id: None where no key is required.
        is_admin: whether it may see and change the jobs of all owners.
    """

    owner: str
    key_id: str | None
    high_priority_allowed: bool
    is_admin: bool = False


@dataclass(frozen=True)
class KeyFingerprint:
    """Identifies a key that a client has presented, without the key itself."""

    key_id: str
    digest: str


class ApiKeys:
    """The keys in Redis and, if there is one, the key from the settings (`preset`).

    Safe between threads. Methods raise Unavailable while Redis cannot be reached.
    """

    def __init__(self, redis: Redis, preset: SecretStr | None = None) -> None:
        self._redis = redis
        self._preset = _digest(preset.get_secret_value()) if preset else None

    def create(
        self,
        owner: str,
        *,
        expires_at: datetime | None = None,
        high_priority: bool = False,
        admin: bool = False,
    ) -> str:
        """Create a key for an owner and return it. The key itself is not stored. Raise InvalidOwner."""
        if not _OWNER.fullmatch(owner):
            raise InvalidOwner(f"an owner must match {_OWNER.pattern}, which {owner!r} does not")
        key_id = secrets.token_hex(6)
        key = f"lc_{key_id}_{secrets.token_urlsafe(32)}"
        self._store(
            ApiKey(
                id=key_id,
                owner=owner,
                digest=_digest(key),
                created_at=_text(_now()),
                expires_at=None if expires_at is None else _text(expires_at),
                high_priority=high_priority,
                admin=admin,
            )
        )
        return key

    def all(self) -> list[ApiKey]:
        """Return every key that was ever created and that can be read, the oldest first."""
        with redis_reached():
            stored = self._redis.hvals(KEYS)
            used = self._redis.hgetall(LAST_USED)
        found = [self._read(document) for document in stored]
        keys = [replace(key, last_used_at=_decoded(used.get(key.id.encode()))) for key in found if key]
        return sorted(keys, key=lambda key: key.created_at)

    def revoke(self, key_id: str) -> bool:
        """End a key and its sessions, at once for all processes. Return False if there is no such key."""
        found = self._find(key_id)
        if found and not found.revoked_at:
            self._store(replace(found, revoked_at=_text(_now())))
        return found is not None

    def authenticate(self, key: str) -> Caller | None:
        """Return the client that a key identifies, None if the key is not valid. Record the use."""
        return self.authenticate_fingerprint(self.fingerprint(key))

    def fingerprint(self, key: str) -> KeyFingerprint:
        """Return the fingerprint of a key, valid or not, for `authenticate_fingerprint`."""
        digest = _digest(key)
        if self._preset and hmac.compare_digest(digest, self._preset):
            return KeyFingerprint(PRESET_ID, digest)
        match = _KEY.fullmatch(key)
        return KeyFingerprint(match[1] if match else "", digest)

    def authenticate_fingerprint(self, fingerprint: KeyFingerprint) -> Caller | None:
        """Return the client of the key with this fingerprint, None if the key is not valid now."""
        if fingerprint.key_id == PRESET_ID:
            is_preset = self._preset is not None and hmac.compare_digest(fingerprint.digest, self._preset)
            return Caller(PRESET_OWNER, PRESET_ID, high_priority_allowed=True) if is_preset else None
        found = self._find(fingerprint.key_id) if fingerprint.key_id else None
        is_genuine = hmac.compare_digest(fingerprint.digest, found.digest if found else _DIGEST_OF_NO_KEY)
        if found is None or not is_genuine or not found.is_valid:
            return None
        self._record_use(found)
        return Caller(found.owner, found.id, found.high_priority, found.admin)

    def any_exist(self) -> bool:
        """Check that there is a key, or that there ever was one."""
        if self._preset:
            return True
        with redis_reached():
            return bool(self._redis.exists(KEYS))

    def _find(self, key_id: str) -> ApiKey | None:
        with redis_reached(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(KEYS, key_id)
            pipeline.hget(LAST_USED, key_id)
            document, used = pipeline.execute()
        key = None if document is None else self._read(document)
        return key and replace(key, last_used_at=_decoded(used))

    def _read(self, document: bytes | str) -> ApiKey | None:
        """Return a stored key. Missing fields get their defaults, fields of later releases are ignored.

        Return None for a key that this release cannot read: it is not valid here.
        """
        try:
            key = _API_KEY.validate_json(document)
            _ = key.is_valid  # reads its times
        except ValueError as error:
            report_unreadable(self._redis, "api key", UnreadableRecord(str(error)))
            return None
        return key

    def _record_use(self, key: ApiKey) -> None:
        now = _now()
        if key.last_used_at is None or now - _time(key.last_used_at) >= _LAST_USED_RESOLUTION:
            with suppress(RedisError):  # a Redis that refuses writes can still authenticate
                self._redis.hset(LAST_USED, key.id, _text(now))

    def _store(self, key: ApiKey) -> None:
        document = asdict(key)
        del document["last_used_at"]  # has its own hash: recording a use cannot undo a revocation
        with redis_reached():
            self._redis.hset(KEYS, key.id, json.dumps(document))


_API_KEY = TypeAdapter(ApiKey)


def _decoded(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
