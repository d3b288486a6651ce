"""When a group that did not come up is tried again: later each time; after a few times it counts as broken.

Only failed starts count: a job that kills its group must not take the group out of service.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Backoff:
    """Failed starts since the last good one, and what follows from them."""

    max_failures: int
    longest_pause_s: float
    first_pause_s: float = 1.0
    failures: int = 0

    @property
    def is_open(self) -> bool:
        """Whether people should be told that the group is broken; it is tried again all the same."""
        return self.failures >= self.max_failures

    @property
    def pause_s(self) -> float:
        """How long to wait before the next start."""
        if not self.failures:
            return 0.0
        doublings = min(self.failures - 1, 30)
        return min(self.first_pause_s * 2.0**doublings, self.longest_pause_s)

    def after_failure(self) -> Backoff:
        """A start failed."""
        return replace(self, failures=self.failures + 1)

    def after_success(self) -> Backoff:
        """The group came up."""
        return replace(self, failures=0)
