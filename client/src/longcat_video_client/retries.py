"""Decide which failed requests are sent again, and when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from longcat_video_client.errors import ApiError, RateLimited, ServiceUnavailable, Timeout

_GROWTH = 2.0


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of retries: failed requests are sent again for `total_s`; 0 turns retries off.

    The delays grow from `first_delay_s` to `max_delay_s`. A longer `Retry-After` of the service is respected.
    Before each delay, `on_retry` is called with the error and the seconds until the next attempt.
    """

    total_s: float = 60.0
    first_delay_s: float = 0.5
    max_delay_s: float = 8.0
    on_retry: Callable[[ApiError, float], object] | None = None


class Attempts:
    """The attempts to get one response, or to keep one stream going."""

    def __init__(self, policy: RetryPolicy, deadline: Deadline | None = None) -> None:
        self._policy = policy
        self._deadline = deadline
        self.num_failed = 0
        self.succeeded()

    def succeeded(self) -> None:
        """Start anew: an attempt made headway."""
        self._ends_at = time.monotonic() + self._policy.total_s
        self._num_failed_in_a_row = 0

    def delay_after(self, error: RateLimited | ServiceUnavailable) -> float:
        """Return how many seconds to wait before the next attempt.

        Raises:
            RateLimited: the next attempt would be too late.
            ServiceUnavailable: the next attempt would be too late.
            Timeout: the deadline has passed.
        """
        delay_s = self._policy.first_delay_s * _GROWTH**self._num_failed_in_a_row
        delay_s = min(delay_s, self._policy.max_delay_s) * random.uniform(0.75, 1.0)  # noqa: S311
        self.num_failed += 1
        self._num_failed_in_a_row += 1
        left_s = self._ends_at - time.monotonic()
        asked_s = error.retry_after_s or 0.0
        if asked_s >= left_s:
            raise error
        delay_s = max(asked_s, min(delay_s, left_s))
        if self._deadline:
            delay_s = self._deadline.limit(delay_s)
        if self._policy.on_retry:
            self._policy.on_retry(error, delay_s)
        return delay_s


class Deadline:
    """The time until which the caller waits for a job; None waits without limit."""

    def __init__(self, job_id: str, timeout_s: float | None) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    def check(self) -> None:
        """Raise Timeout if the time has passed."""
        if self._at is not None and self._timeout_s is not None and time.monotonic() >= self._at:
            raise Timeout(self._job_id, self._timeout_s)

    def left_s(self) -> float | None:
        """Return the time left, None without a limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def limit(self, duration_s: float) -> float:
        """Return the duration, or the time left if that is shorter. Raise Timeout if no time is left."""
        self.check()
        return duration_s if self._at is None else max(0.0, min(duration_s, self._at - time.monotonic()))
