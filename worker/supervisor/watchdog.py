"""Notices a group that hangs: it is silent for longer than its work can take.

The supervisor tells it what it hears and asks it while it hears nothing. It measures steps where they
follow each other; everywhere else (encoding, the first step of a shape, decoding) a setting is the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.record import Progress

SLOWEST_STEPS = 5  # so many times the slowest step of the job may a step take
LONGEST_LOOK_S = 1.0  # this process may have been stopped itself: that is not the group's silence


class Watchdog:
    """Counts the silence of one group. Limits in seconds: of any silence, and the least one between steps."""

    def __init__(
        self, silence_limit_s: float, step_limit_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._silence_limit_s = silence_limit_s
        self._step_limit_s = step_limit_s
        self._clock = clock
        self._looked_at = clock()
        self._silence_s = 0.0
        self._slowest_step_s = 0.0
        self._progress: Progress | None = None
        self._in_step = False

    def begin(self) -> None:
        """A job was handed over."""
        self._slowest_step_s, self._progress, self._in_step = 0.0, None, False
        self._hear()

    def heard(self, progress: Progress | None) -> None:
        """The group said something; `progress` if it was that."""
        silence_s = self._hear()
        if progress is None:
            return
        if self._in_step:
            self._slowest_step_s = max(self._slowest_step_s, silence_s)
        self._in_step = _follows(self._progress, progress) and progress.step < progress.num_steps
        self._progress = progress

    def stalled(self) -> bool:
        """Whether the silence is too long by now. Ask at least once a second."""
        self._look()
        return self._silence_s > self.limit_s

    @property
    def limit_s(self) -> float:
        """How long the present silence may last."""
        if self._in_step and self._slowest_step_s:
            return max(self._step_limit_s, SLOWEST_STEPS * self._slowest_step_s)
        return self._silence_limit_s

    def _hear(self) -> float:
        self._look()
        silence_s, self._silence_s = self._silence_s, 0.0
        return silence_s

    def _look(self) -> None:
        now = self._clock()
        self._silence_s += min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now


def _follows(before: Progress | None, now: Progress) -> bool:
    """Whether a step lies between the two, and another one like it comes next."""
    return (
        before is not None
        and (before.phase, before.segment, before.step + 1) == (now.phase, now.segment, now.step)
        and now.phase in {"denoise", "refine"}
    )
