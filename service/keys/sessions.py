"""Sessions of the console: a browser presents its API key once and gets a cookie that expires soon.

The cookie holds a random id. Redis holds a digest of the id and of the key, so neither can be read there. A
session allows what its key allows at the moment of the request, and ends with the key. Each use extends a
session, up to a maximum lifetime: other servers on the same host receive the cookie too, and must not be
able to keep the session alive for ever.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from math import ceil

from pydantic import BaseModel, ValidationError
from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import UnreadableRecord
from jobs.store.metrics import report_unreadable
from service.keys.api_keys import ApiKeys, Caller, KeyFingerprint

PREFIX = "longcat:session:"
_MAX_LIFETIMES = 14  # a session ends after so many lifetimes, however often it is used


class Sessions:
    """The sessions in Redis. Safe between threads; methods raise Unavailable without Redis."""

    def __init__(self, redis: Redis, keys: ApiKeys, lifetime_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._lifetime_s = ceil(lifetime_s)

    def open(self, key: str) -> str:
        """Start a session for a key and return its id. It allows nothing while the key is not valid."""
        ends_at_s = time.time() + _MAX_LIFETIMES * self._lifetime_s
        fingerprint = self._keys.fingerprint(key)
        session = Session(key_id=fingerprint.key_id, digest=fingerprint.digest, ends_at_s=ends_at_s)
        session_id = secrets.token_urlsafe(32)
        with redis_reached():
            self._redis.set(_redis_key(session_id), session.model_dump_json(), ex=self._lifetime_s)
        return session_id

    def authenticate(self, session_id: str) -> Caller | None:
        """Return the client of a session and extend the session. Return None if it has ended."""
        with redis_reached():
            document = self._redis.getex(_redis_key(session_id), ex=self._lifetime_s)
        session = None if document is None else self._read(document)
        if session is None or time.time() >= session.ends_at_s:
            return None
        return self._keys.authenticate_fingerprint(KeyFingerprint(session.key_id, session.digest))

    def close(self, session_id: str) -> None:
        """End a session."""
        with redis_reached():
            self._redis.delete(_redis_key(session_id))

    def _read(self, document: bytes | str) -> Session | None:
        """Return a stored session, None if this release cannot read it: the user signs in again."""
        try:
            return Session.model_validate_json(document)
        except ValidationError as error:
            report_unreadable(self._redis, "session", UnreadableRecord(str(error)))
            return None


class Session(BaseModel):
    """A stored session: the fingerprint of its key, and when it ends at the latest, in Unix time."""

    schema_version: int = 1
    key_id: str
    digest: str
    ends_at_s: float


def _redis_key(session_id: str) -> str:
    return PREFIX + hashlib.sha256(session_id.encode()).hexdigest()
