"""Sessions of the console: a browser shows its API key once and then has a cookie that soon expires.

The cookie holds a random id; Redis holds a digest of it and of the key, so neither can be read from there. A
session allows what its key allows at that moment, and ends with it. Each use extends a session, up to a
limit: other servers on the same host receive the cookie, too, and must not keep it alive for ever.
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
from service.keys import ApiKeys, Grant, KeyProof

PREFIX = "longcat:session:"
_MAX_LIFETIMES = 14  # after its beginning a session ends, however often it was extended


class Sessions:
    """The sessions in Redis. Safe between threads. Raises Unavailable while Redis cannot be reached."""

    def __init__(self, redis: Redis, keys: ApiKeys, lifetime_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._lifetime_s = ceil(lifetime_s)

    def open(self, key: str) -> str:
        """Begin a session and return its id; it allows nothing while the key is not valid."""
        ends_at_s = time.time() + _MAX_LIFETIMES * self._lifetime_s
        document = json.dumps({**asdict(self._keys.proof_of(key)), "ends_at_s": ends_at_s})
        session_id = secrets.token_urlsafe(32)
        with redis_reached():
            self._redis.set(_name(session_id), document, ex=self._lifetime_s)
        return session_id

    def grant_of(self, session_id: str) -> Grant | None:
        """Return what a session allows, None if it ended, and extend it."""
        with redis_reached():
            document = self._redis.getex(_name(session_id), ex=self._lifetime_s)
        if document is None:
            return None
        stored = json.loads(document)
        if time.time() >= stored["ends_at_s"]:
            return None
        return self._keys.grant_of_proof(KeyProof(stored["key_id"], stored["digest"]))

    def close(self, session_id: str) -> None:
        """End a session."""
        with redis_reached():
            self._redis.delete(_name(session_id))


def _name(session_id: str) -> str:
    return PREFIX + hashlib.sha256(session_id.encode()).hexdigest()
