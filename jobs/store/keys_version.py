"""Keep releases away from keys in Redis that they cannot use."""

from __future__ import annotations

from redis import Redis

from jobs.connect import check_server
from jobs.errors import UnfitServer
from jobs.store.scripts import Scripts

KEYS_VERSION = 4
"""The version of the keys in Redis and of what is in them, which `scripts/README.md` lists."""
OLDEST_READER = 3
"""The `KEYS_VERSION` of the release before this one: the oldest that can use what this one writes, and whose
keys this one can use."""


def check_redis(redis: Redis, wait_replicas: int) -> None:
    """Check that this release can use the server and the keys in it. Raises UnfitServer, Unavailable."""
    check_server(redis, wait_replicas)
    check_keys_version(redis)


def check_keys_version(redis: Redis) -> None:
    """Record the version of the keys in Redis. Call it before any other use of them.

    Raises UnfitServer if a later release has used them that this one is too old for, or if only releases have
    used them that this one is too new for, Unavailable.
    """
    recorded, oldest = Scripts(redis).run(
        "record_keys_version", version=KEYS_VERSION, oldest_reader=OLDEST_READER
    )
    if 0 < recorded < OLDEST_READER:
        raise UnfitServer(
            f"the keys in this Redis have version {recorded}, and this release needs version {OLDEST_READER} "
            "or later: update by one release at a time, from 0.2.0 to 0.3.0 first"
        )
    if oldest > KEYS_VERSION:
        raise UnfitServer(
            f"a later release has used this Redis: its keys need version {oldest} or later, and this release "
            f"has {KEYS_VERSION}; go back by one release at a time, or restore a backup of Redis"
        )
