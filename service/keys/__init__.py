"""API keys: who may ask, in whose name, and for how long. `python -m service.keys` manages them.

Redis holds only a digest of each key. A key is 32 random bytes, so a plain hash is enough: there is nothing
to guess. Revoked and expired keys stay on the list, so that a service which once had keys never falls open.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from jobs.connect import redis_reached
from jobs.errors import LongCatError

KEYS = "longcat:keys"
LAST_USED = "longcat:keys:last_used"
PRESET_OWNER = "default"
PRESET_ID = "preset"
_LAST_USED_STEP = timedelta(minutes=1)
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"lc_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NOBODYS = hashlib.sha256().hexdigest()


class UnfitOwner(LongCatError):
    """A name that no owner can have."""

    code = "unfit_owner"


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. Times are RFC 3339 in UTC."""

    id: str
    owner: str
    digest: str
    created_at: str
    revoked_at: str | None = None
    expires_at: str | None = None
    high_priority: bool = False
    last_used_at: str | None = None

    @property
    def is_valid(self) -> bool:
        """Check that the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or _now() < _time(self.expires_at))


@dataclass(frozen=True)
class Grant:
    """What a valid key allows: to ask in this owner's name. `key_id` is None where no key is needed."""

    owner: str
    key_id: str | None
    high_priority: bool


@dataclass(frozen=True)
class KeyProof:
    """Identifies a key that somebody has shown, without the key itself."""

    key_id: str
    digest: str


class ApiKeys:
    """The keys in Redis, and one from the settings, if there is one.

    Safe between threads. Raises Unavailable while Redis cannot be reached.
    """

    def __init__(self, redis: Redis, preset: SecretStr | None = None) -> None:
        self._redis = redis
        self._preset = _digest(preset.get_secret_value()) if preset else None

    def create(self, owner: str, *, expires_at: datetime | None = None, high_priority: bool = False) -> str:
        """Make a key in this owner's name and return it; it is not stored. Raise UnfitOwner."""
        if not _OWNER.fullmatch(owner):
            raise UnfitOwner(f"an owner must match {_OWNER.pattern}, which {owner!r} does not")
        key_id = secrets.token_hex(6)
        key = f"lc_{key_id}_{secrets.token_urlsafe(32)}"
        expiry = None if expires_at is None else _text(expires_at)
        self._store(
            ApiKey(
                key_id,
                owner,
                _digest(key),
                _text(_now()),
                expires_at=expiry,
                high_priority=high_priority,
            )
        )
        return key

    def all(self) -> list[ApiKey]:
        """Return every key ever made, the oldest first."""
        with redis_reached():
            stored = self._redis.hvals(KEYS)
            used = self._redis.hgetall(LAST_USED)
        keys = [_read(document) for document in stored]
        keys = [replace(key, last_used_at=_decoded(used.get(key.id.encode()))) for key in keys]
        return sorted(keys, key=lambda key: key.created_at)

    def revoke(self, key_id: str) -> bool:
        """End a key, and its sessions, at once and everywhere; return False if there is none."""
        found = self._find(key_id)
        if found and not found.revoked_at:
            self._store(replace(found, revoked_at=_text(_now())))
        return found is not None

    def owner_of(self, key: str) -> str | None:
        """Return the owner of a valid key, None for any other text."""
        grant = self.grant_of(key)
        return grant.owner if grant else None

    def grant_of(self, key: str) -> Grant | None:
        """Return what a key allows, None if it is not valid, and note that it was used."""
        return self.grant_of_proof(self.proof_of(key))

    def proof_of(self, key: str) -> KeyProof:
        """Return what identifies a key in `grant_of_proof`, valid or not."""
        digest = _digest(key)
        if self._preset and hmac.compare_digest(digest, self._preset):
            return KeyProof(PRESET_ID, digest)
        shape = _KEY.fullmatch(key)
        return KeyProof(shape[1] if shape else "", digest)

    def grant_of_proof(self, proof: KeyProof) -> Grant | None:
        """Return what the key behind a proof allows now, None if it is not valid (any more)."""
        if proof.key_id == PRESET_ID:
            is_preset = self._preset is not None and hmac.compare_digest(proof.digest, self._preset)
            return Grant(PRESET_OWNER, PRESET_ID, high_priority=True) if is_preset else None
        found = self._find(proof.key_id) if proof.key_id else None
        is_genuine = hmac.compare_digest(proof.digest, found.digest if found else _NOBODYS)
        if found is None or not is_genuine or not found.is_valid:
            return None
        self._note_use(found)
        return Grant(found.owner, found.id, found.high_priority)

    def any_made(self) -> bool:
        """Check that there is a key, or ever was."""
        if self._preset:
            return True
        with redis_reached():
            return bool(self._redis.exists(KEYS))

    def _find(self, key_id: str) -> ApiKey | None:
        with redis_reached(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(KEYS, key_id)
            pipeline.hget(LAST_USED, key_id)
            document, used = pipeline.execute()
        return None if document is None else replace(_read(document), last_used_at=_decoded(used))

    def _note_use(self, key: ApiKey) -> None:
        now = _now()
        if key.last_used_at is None or now - _time(key.last_used_at) >= _LAST_USED_STEP:
            with suppress(RedisError):  # a Redis that takes no writes can still be read
                self._redis.hset(LAST_USED, key.id, _text(now))

    def _store(self, key: ApiKey) -> None:
        document = asdict(key)
        del document["last_used_at"]  # in a hash of its own: noting a use cannot undo a revocation
        with redis_reached():
            self._redis.hset(KEYS, key.id, json.dumps(document))


def _read(document: bytes | str) -> ApiKey:
    """Read a stored key: fields that are missing have defaults, fields of later releases are ignored."""
    known = {field.name for field in fields(ApiKey)}
    return ApiKey(**{name: value for name, value in json.loads(document).items() if name in known})


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
