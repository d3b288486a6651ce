"""Decide when a process that failed to start is started again."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Backoff:
    """Failed starts in a row, and the pause that follows from them.

    Only failed starts count: a job that crashes its GPU group must not take the group out of service.
    """

    max_failures: int
    longest_pause_s: float
    first_pause_s: float = 1.0
    failures: int = 0

    @property
    def is_exhausted(self) -> bool:
        """Return whether the group counts as broken. It is started again all the same."""
        return self.failures >= self.max_failures

    @property
    def pause_s(self) -> float:
        """Return how long to wait before the next start; it doubles with each failure."""
        if not self.failures:
            return 0.0
        doublings = min(self.failures - 1, 30)
        return min(self.first_pause_s * 2.0**doublings, self.longest_pause_s)

    def after_failure(self) -> Backoff:
        """Return the backoff after another failed start."""
        return replace(self, failures=self.failures + 1)

    def after_success(self) -> Backoff:
        """Return the backoff after a good start."""
        return replace(self, failures=0)
