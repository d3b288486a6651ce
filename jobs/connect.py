"""Connect to Redis with explicit timeouts and retries, and check that the server is supported.

The service retries for a short time, so that requests get a 503 soon. The worker retries for long, so that a
job survives an outage.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from jobs.errors import Unavailable, UnfitServer

logger = logging.getLogger(__name__)

T = TypeVar("T")

OLDEST_SERVER = (6, 2)
_PAUSE_S = 0.25
_TAKES_NO_WRITES = re.compile(r"(^|: -)(OOM|READONLY|MISCONF|NOREPLICAS) ")
"""Matches errors of a Redis that accepts no writes. Redis 6.2 puts the script and line before them."""


def connect(redis_url: str, patience_s: float = 60.0) -> Redis:
    """Return a client that retries each command for about `patience_s` while Redis cannot be reached.

    A command whose reply was lost is sent again, so every command must be safe to repeat.
    """
    return Redis.from_url(
        redis_url,
        socket_connect_timeout=5.0,
        socket_timeout=10.0,
        health_check_interval=15,
        retry=Retry(ConstantBackoff(_PAUSE_S), retries=math.ceil(patience_s / _PAUSE_S)),
    )


def connect_with_deadline(redis_url: str, deadline_s: float) -> Redis:
    """Return a client whose commands end within about `deadline_s`, even if Redis hangs."""
    return Redis.from_url(
        redis_url,
        socket_connect_timeout=deadline_s,
        socket_timeout=deadline_s,
        health_check_interval=15,
        retry=_RetryUntilDeadline(deadline_s),
    )


class _RetryUntilDeadline(Retry):
    """Retry until a time has passed, however many attempts that takes.

    Each connection has its own. If it connects within a command, the deadline of the command applies.
    """

    def __init__(self, deadline_s: float) -> None:
        super().__init__(ConstantBackoff(min(_PAUSE_S, deadline_s)), retries=-1)
        self._deadline_s = deadline_s
        self._ends_at: float | None = None

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> T:
        """Call `do`, and `fail` after each failure, which closes the connection."""

        def fail_in_time(error: Exception, *count: int) -> None:
            fail(error, *count)
            if time.monotonic() >= ends_at:
                raise error

        is_outermost = self._ends_at is None
        ends_at = self._ends_at = self._ends_at or time.monotonic() + self._deadline_s
        try:
            return super().call_with_retry(do, fail_in_time, *args, **options)
        finally:
            if is_outermost:
                self._ends_at = None


@contextmanager
def redis_reached() -> Iterator[None]:
    """Raise Unavailable if Redis cannot be reached or accepts no writes."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable("Redis cannot be reached; try again soon") from error
    except ResponseError as error:
        is_known = isinstance(error, OutOfMemoryError | ReadOnlyError)
        if is_known or _TAKES_NO_WRITES.search(str(error)):
            raise Unavailable("Redis takes no writes at the moment") from error
        raise


def check_server(redis: Redis) -> None:
    """Raise UnfitServer if the server is older than 6.2. Warn if its settings may lose jobs.

    Raises Unavailable if it cannot be reached.
    """
    with redis_reached():
        version = str(redis.info("server")["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise UnfitServer(f"Redis {version} is too old: 6.2 or later is needed")
        if _setting(redis, "appendonly") == "no":
            logger.warning("Redis keeps no append-only file: accepted jobs are lost when it stops")
        elif _setting(redis, "appendfsync") != "always":
            logger.warning(
                "Redis may lose the last second or two when it is killed: set appendfsync to always"
            )
        if _setting(redis, "maxmemory-policy") not in {None, "noeviction"}:
            logger.warning("Redis may evict keys when memory is short: set maxmemory-policy to noeviction")


def _setting(redis: Redis, name: str) -> str | None:
    try:
        return redis.config_get(name).get(name)
    except ResponseError:  # managed servers hide their settings
        return None
