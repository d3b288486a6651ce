"""Sessions of the console: a browser presents its API key once and gets a cookie that expires soon.

The cookie holds a random id. Redis holds a digest of the id and of the key, so neither can be read there. A
session allows what its key allows at the moment of the request, and ends with the key. Each use extends a
session, up to a maximum lifetime: other servers on the same host receive the cookie too, and must not be
able to keep the session alive for ever.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict
from math import ceil

from redis import Redis

from jobs.connect import redis_reached
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
        document = json.dumps({**asdict(self._keys.fingerprint(key)), "ends_at_s": ends_at_s})
        session_id = secrets.token_urlsafe(32)
        with redis_reached():
            self._redis.set(_redis_key(session_id), document, ex=self._lifetime_s)
        return session_id

    def authenticate(self, session_id: str) -> Caller | None:
        """Return the client of a session and extend the session. Return None if it has ended."""
        with redis_reached():
            document = self._redis.getex(_redis_key(session_id), ex=self._lifetime_s)
        if document is None:
            return None
        stored = json.loads(document)
        if time.time() >= stored["ends_at_s"]:
            return None
        return self._keys.authenticate_fingerprint(KeyFingerprint(stored["key_id"], stored["digest"]))

    def close(self, session_id: str) -> None:
        """End a session."""
        with redis_reached():
            self._redis.delete(_redis_key(session_id))


def _redis_key(session_id: str) -> str:
    return PREFIX + hashlib.sha256(session_id.encode()).hexdigest()
