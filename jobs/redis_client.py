"""Keep a deadline for each command to Redis, whatever Redis does meanwhile.

redis-py counts attempts, each with a timeout of its own, so a server that hangs holds a command for many
times as long as was meant. Here the deadline begins when a command takes a connection from the pool. All
attempts, connecting included, end with it.

Connections to a server that was demoted to a replica are closed, so the next attempt finds the new primary.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from redis.backoff import ConstantBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from jobs.logs import OUTAGE_ENDED

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S = 0.25  # between two attempts
_DEADLINE_IN_OUTAGE_S = 0.2
_SHORTEST_WAIT_S = 0.01  # a socket timeout of 0 would not wait at all
_CODE = re.compile(r"(?:^|: -?)([A-Z]+) ")


def error_code(error: ResponseError) -> str:
    """Return the code of an error reply, for instance READONLY.

    Redis 6.2 puts the script and the line before the code of an error in a script. redis-py puts the command
    before that of an error in a pipeline.
    """
    code = error.status_code
    if code and code not in {"ERR", "EXECABORT"}:
        return code
    found = _CODE.findall(str(error))
    return found[-1] if found else ""


class Outage:
    """Remember that Redis does not answer. All connections of a client share one.

    During an outage one command at a time has its full deadline. All others have a short one, so that
    requests do not queue up for threads that wait for Redis. The outage ends with the first answer.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_on = False
        self._is_probing = False

    def begin_command(self, deadline_s: float) -> tuple[float, bool]:
        """Return how long a command may take, and whether it is the one that has its full deadline."""
        with self._lock:
            if self._is_on and self._is_probing:
                return min(deadline_s, _DEADLINE_IN_OUTAGE_S), False
            self._is_probing |= self._is_on
            return deadline_s, self._is_on

    def end_command(self, *, answered: bool, was_probe: bool) -> None:
        """Note whether Redis answered a command."""
        with self._lock:
            has_ended = self._is_on and answered
            self._is_on = not answered
            if was_probe:
                self._is_probing = False
        if has_ended:
            logger.warning("Redis answers again", extra=OUTAGE_ENDED)


class DeadlineRetry(Retry):
    """Retry until the deadline of a command, however many attempts that takes.

    Each connection has its own. The deadline begins with the first call after `end`.
    """

    def __init__(self, deadline_s: float, outage: Outage) -> None:
        super().__init__(ConstantBackoff(min(PAUSE_S, deadline_s)), retries=-1)
        self._deadline_s = deadline_s
        self._outage = outage
        self._ends_at: float | None = None
        self._is_probe = False
        self._answered = False

    def __deepcopy__(self, memo: object) -> DeadlineRetry:
        """Return another one for the same client; redis-py copies the retry for each connection."""
        return DeadlineRetry(self._deadline_s, self._outage)

    @property
    def remaining_s(self) -> float:
        """Return the time until the deadline."""
        if self._ends_at is None:
            return self._deadline_s
        return max(_SHORTEST_WAIT_S, self._ends_at - time.monotonic())

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> T:
        """Call `do`, and `fail` after each failure, which closes the connection."""
        if self._ends_at is None:
            allowed_s, self._is_probe = self._outage.begin_command(self._deadline_s)
            self._ends_at = time.monotonic() + allowed_s
        ends_at = self._ends_at

        def fail_in_time(error: Exception, *count: int) -> None:
            fail(error, *count)
            if time.monotonic() >= ends_at:
                raise error

        self._answered = False
        try:
            returned = super().call_with_retry(do, fail_in_time, *args, **options)
        except ResponseError:
            self._answered = True
            raise
        self._answered = True
        return returned

    def end(self) -> None:
        """End the command: its connection goes back to the pool."""
        if self._ends_at is not None:
            self._ends_at = None
            self._outage.end_command(answered=self._answered, was_probe=self._is_probe)


class _Deadlines:
    """A mixin for connections: wait no longer than the deadline allows, and leave demoted servers."""

    def _connect(self: Any) -> Any:  # noqa: ANN401
        self.socket_connect_timeout = self.socket_timeout = self.retry.remaining_s
        return super()._connect()  # type: ignore[misc]

    def send_packed_command(self: Any, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Send a command before the deadline."""
        self._limit_wait()
        super().send_packed_command(*args, **options)  # type: ignore[misc]

    def read_response(self: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return a reply before the deadline.

        Raises redis's ConnectionError if the server has become a replica, so that the command is sent again.
        """
        self._limit_wait()
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            match error_code(error):
                case "READONLY":
                    self.disconnect()
                    raise RedisConnectionError("this Redis was demoted to a replica") from error
                case "NOREPLICAS":  # a partitioned primary; another one may have taken over
                    self.mark_for_reconnect()
            raise

    def _limit_wait(self: Any) -> None:
        if self._sock is not None:
            self._sock.settimeout(self.retry.remaining_s)


class _TcpConnection(_Deadlines, Connection):
    pass


class _TlsConnection(_Deadlines, SSLConnection):
    pass


class _UnixConnection(_Deadlines, UnixDomainSocketConnection):
    pass


class _SentinelTcpConnection(_Deadlines, SentinelManagedConnection):
    pass


class _SentinelTlsConnection(_Deadlines, SentinelManagedSSLConnection):
    pass


CONNECTIONS: dict[str, type] = {
    "redis": _TcpConnection,
    "rediss": _TlsConnection,
    "unix": _UnixConnection,
    "redis+sentinel": _SentinelTcpConnection,
    "rediss+sentinel": _SentinelTlsConnection,
}
"""The class of connections for each scheme of a URL."""


class _EndsCommands:
    """A mixin for pools: a connection that comes back ends its command."""

    def release(self, connection: Any) -> None:  # noqa: ANN401
        """Take a connection back."""
        connection.retry.end()
        super().release(connection)  # type: ignore[misc]


class Pool(_EndsCommands, ConnectionPool):
    """Connections to one server."""


class SentinelPool(_EndsCommands, SentinelConnectionPool):
    """Connections to the primary that the Sentinels name."""
