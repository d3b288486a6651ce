"""Write all keys of a Redis as JSON, and load them again."""

from __future__ import annotations

import base64
from typing import Any

from redis import Redis

Dump = dict[str, dict[str, Any]]
"""For each key its `type`, its `value`, and `ttl_ms` if it expires."""


def dump(redis: Redis) -> Dump:
    """Return all keys with their values, except those that expire meanwhile."""
    found: Any = sorted(redis.keys())
    return {name.decode(): key for name in found if (key := _dump_key(redis, name))}


def load(redis: Redis, keys: Dump) -> None:
    """Write keys that `dump` returned. Keys do not expire, however long ago they were dumped."""
    for name, key in keys.items():
        _LOAD[key["type"]](redis, name, key["value"])


def _dump_key(redis: Any, name: bytes) -> dict[str, Any] | None:
    kind, ttl_ms = redis.type(name).decode(), redis.pttl(name)
    if kind not in _DUMP:  # "none": it has expired
        return None
    return {"type": kind, **({"ttl_ms": ttl_ms} if ttl_ms > 0 else {}), "value": _DUMP[kind](redis, name)}


def _text(value: bytes) -> Any:
    """Return UTF-8 as it is, anything else as `{"base64": …}`."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _bytes(value: Any) -> bytes:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value.encode()


def _fields(fields: dict[bytes, bytes]) -> dict[str, Any]:
    return {name.decode(): _text(value) for name, value in sorted(fields.items())}


def _raw_fields(fields: dict[str, Any]) -> dict[Any, Any]:
    return {name: _bytes(value) for name, value in fields.items()}


_DUMP: dict[str, Any] = {
    "string": lambda redis, name: _text(redis.get(name)),
    "hash": lambda redis, name: _fields(redis.hgetall(name)),
    "list": lambda redis, name: [_text(value) for value in redis.lrange(name, 0, -1)],
    "set": lambda redis, name: sorted(value.decode() for value in redis.smembers(name)),
    "zset": lambda redis, name: {
        member.decode(): score for member, score in redis.zrange(name, 0, -1, withscores=True)
    },
    "stream": lambda redis, name: {
        entry_id.decode(): _fields(entry) for entry_id, entry in redis.xrange(name)
    },
}


def _load_stream(redis: Any, name: str, entries: dict[str, dict[str, Any]]) -> None:
    for entry_id, entry in entries.items():
        redis.xadd(name, _raw_fields(entry), id=entry_id)


_LOAD: dict[str, Any] = {
    "string": lambda redis, name, value: redis.set(name, _bytes(value)),
    "hash": lambda redis, name, value: redis.hset(name, mapping=_raw_fields(value)),
    "list": lambda redis, name, value: redis.rpush(name, *map(_bytes, value)),
    "set": lambda redis, name, value: redis.sadd(name, *value),
    "zset": lambda redis, name, value: redis.zadd(name, value),
    "stream": _load_stream,
}
