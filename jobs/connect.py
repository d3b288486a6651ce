"""Connect to Redis, sort the ways in which it fails, and check that the server is supported.

Redis may be away, stalled, full, loading its data, unable to save, short of replicas, or demoted to a
replica. All of these are `Unavailable`: requests are answered 503, and workers go on and report later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from jobs.errors import Unavailable, UnfitServer
from jobs.redis_client import CONNECTIONS, DeadlineRetry, Outage, Pool, SentinelPool, error_code

logger = logging.getLogger(__name__)

OLDEST_SERVER = (6, 2)
_SENTINEL_TIMEOUT_S = 0.5  # of each Sentinel: the others are asked when it does not answer
_HEALTH_CHECK_S = 15
_REFUSALS = {
    "OOM": "Redis is full",
    "MISCONF": "Redis takes no writes at the moment: it cannot save its data",
    "NOREPLICAS": "Redis takes no writes at the moment: too few replicas are in sync",
    "READONLY": "Redis takes no writes at the moment: it is a replica",
    "LOADING": "Redis is loading its data",
    "BUSY": "Redis is busy",
    "MASTERDOWN": "Redis has lost its primary",
    "NOAUTH": "Redis asks for a password",
    "NOPERM": "Redis does not permit a command to this user",
}
"""What each code means that says nothing about the command itself: it may succeed later."""


def connect(redis_url: str, deadline_s: float = 60.0) -> Redis:
    """Return a client whose commands end within `deadline_s`, retries included, even if Redis hangs.

    A command whose reply was lost is sent again, so every command must be safe to repeat.

    Args:
        redis_url: `redis://`, `rediss://`, `unix://`, or `redis+sentinel://host:port,host:port/service` (also
            with `rediss`). redis-py's parameters may follow, and `sentinel_username` and `sentinel_password`.
        deadline_s: how long a command may take.

    Raises:
        ValueError: the URL has another form.
    """
    check_url(redis_url)
    scheme = urlsplit(redis_url).scheme
    options: dict[str, Any] = {
        "connection_class": CONNECTIONS[scheme],
        "health_check_interval": _HEALTH_CHECK_S,
        "retry": DeadlineRetry(deadline_s, Outage()),
    }
    if scheme.endswith("+sentinel"):
        return Redis.from_pool(_sentinel_pool(redis_url, options))
    return Redis.from_pool(Pool.from_url(redis_url, **options))


def check_url(redis_url: str) -> None:
    """Raise ValueError if `connect` cannot use this URL."""
    url = urlsplit(redis_url)
    if url.scheme not in CONNECTIONS:
        raise ValueError(f"must begin with one of {', '.join(CONNECTIONS)}, followed by ://")
    if url.scheme.endswith("+sentinel"):
        _sentinel_addresses(url)
        if not url.path.strip("/"):
            raise ValueError("must name a service: redis+sentinel://host:port/service")
    else:
        parse_url(redis_url)  # type: ignore[no-untyped-call]


def _sentinel_addresses(url: SplitResult) -> list[tuple[str, int]]:
    return [_address(text) for text in url.netloc.rpartition("@")[2].split(",")]


def _sentinel_pool(redis_url: str, options: dict[str, Any]) -> SentinelPool:
    url = urlsplit(redis_url)
    credentials, at, _ = url.netloc.rpartition("@")
    given = parse_url(f"redis://{credentials}{at}?{url.query}")  # type: ignore[no-untyped-call]
    of_sentinels = {
        "username": given.pop("sentinel_username", None),
        "password": given.pop("sentinel_password", None),
        "socket_timeout": _SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.scheme == "rediss+sentinel":
        tls = {name: value for name, value in given.items() if name.startswith("ssl_")}
        of_sentinels |= {"ssl": True, **tls}
    sentinels = _Sentinels(_sentinel_addresses(url), sentinel_kwargs=of_sentinels)
    return SentinelPool(unquote(url.path.strip("/")), sentinels, **given, **options)  # type: ignore[no-untyped-call]


class _Sentinels(Sentinel):
    """Sentinels that several threads may ask: redis-py reorders their list without a lock."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self._lock = Lock()

    def discover_master(self, service_name: str) -> Any:  # noqa: ANN401
        """Return the host and port of the primary."""
        with self._lock:
            return super().discover_master(service_name)  # type: ignore[no-untyped-call]


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ValueError(f"{text!r} is not the host:port of a Sentinel")
    return host.strip("[]"), int(port)


def unavailable(error: RedisError) -> Unavailable | None:
    """Return the reason why Redis cannot do its work now, None if the command itself is at fault."""
    if isinstance(error, AuthenticationError):
        return Unavailable("Redis refuses the user or the password")
    if isinstance(error, MasterNotFoundError):
        return Unavailable("no Sentinel names a primary of Redis")
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return Unavailable("Redis cannot be reached")
    if isinstance(error, OutOfMemoryError):
        return Unavailable(_REFUSALS["OOM"])
    if isinstance(error, ResponseError) and (reason := _REFUSALS.get(error_code(error))):
        return Unavailable(reason)
    return None


@contextmanager
def redis_reached() -> Iterator[None]:
    """Raise Unavailable if Redis cannot do its work now, for whatever reason."""
    try:
        yield
    except RedisError as error:
        if reason := unavailable(error):
            raise reason from error
        raise


def check_server(redis: Redis, wait_replicas: int = 0) -> None:
    """Raise UnfitServer if the server is older than 6.2. Warn if its settings may lose jobs.

    `wait_replicas` is the number of replicas that must confirm a job. Raises Unavailable if the server cannot
    be reached.
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
        _check_replicas(redis, wait_replicas)


def _check_replicas(redis: Redis, wait_replicas: int) -> None:
    num_replicas = int(redis.info("replication").get("connected_slaves", 0))
    if wait_replicas > num_replicas:
        logger.warning(
            "REDIS_WAIT_REPLICAS is %d, but Redis has %d replicas: submissions are refused until it has more",
            wait_replicas,
            num_replicas,
        )
    elif num_replicas and not wait_replicas and _setting(redis, "min-replicas-to-write") in {None, "0"}:
        logger.warning(
            "Redis has replicas, but a failover may lose accepted jobs: set REDIS_WAIT_REPLICAS to 1 or more"
        )


def _setting(redis: Redis, name: str) -> str | None:
    try:
        return redis.config_get(name).get(name)
    except ResponseError:  # managed servers hide their settings
        return None
