"""The presets in Redis: one hash for each owner, with a JSON document for each name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter
from redis import Redis
from redis.client import Pipeline

from jobs.connect import redis_reached
from jobs.errors import UnreadableRecord
from jobs.store.metrics import report_unreadable
from jobs.store.scripts import text
from service.errors import PresetNotFound, TooManyPresets
from service.keys.authentication import ANONYMOUS

MAX_PRESETS = 100
"""How many presets an owner can have."""


@dataclass(frozen=True)
class StoredPreset:
    """A preset without its name: fields of `POST /generate`, as they were checked when it was stored."""

    options: dict[str, Any]
    schema_version: int = 1


class Presets:
    """The presets of one owner. Safe between threads. Methods raise Unavailable."""

    def __init__(self, redis: Redis, owner: str) -> None:
        self._redis = redis
        self._key = "longcat:presets" if owner == ANONYMOUS else f"longcat:presets:{owner}"

    def all(self) -> dict[str, StoredPreset]:
        """Return the presets in the order of their names, without those that cannot be read."""
        with redis_reached():
            stored = self._redis.hgetall(self._key)
        documents = sorted((text(name), document) for name, document in stored.items())
        found = {name: self._read(document) for name, document in documents}
        return {name: preset for name, preset in found.items() if preset}

    def save(self, name: str, options: dict[str, Any]) -> StoredPreset:
        """Store a preset, in place of the one with the same name if there is one. Raise TooManyPresets."""
        preset = StoredPreset(options)

        def store(pipeline: Pipeline) -> None:
            """Read, then queue the change, which Redis makes unless the presets have changed meanwhile."""
            if pipeline.hlen(self._key) >= MAX_PRESETS and not pipeline.hexists(self._key, name):
                raise TooManyPresets(f"at most {MAX_PRESETS} presets can be kept: delete one first", "name")
            pipeline.multi()
            pipeline.hset(self._key, name, json.dumps(asdict(preset)))

        with redis_reached():
            self._redis.transaction(store, self._key)
        return preset

    def delete(self, name: str) -> None:
        """Remove a preset. Raise PresetNotFound."""
        with redis_reached():
            if not self._redis.hdel(self._key, name):
                raise PresetNotFound("no such preset", "name")

    def _read(self, document: bytes | str) -> StoredPreset | None:
        """Return a stored preset. Fields of later releases are ignored."""
        try:
            return _STORED.validate_json(document)
        except ValueError as error:
            report_unreadable(self._redis, "preset", UnreadableRecord(str(error)))
            return None


_STORED = TypeAdapter(StoredPreset)
