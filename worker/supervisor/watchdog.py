"""Notice a GPU group that hangs: it sends nothing for longer than its work can take.

Where denoising steps follow each other, the slowest step so far sets the limit. Everywhere else (encoding,
the first step of a shape, decoding) a setting does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.record import Progress

SLOWEST_STEPS = 5  # a step may take this many times as long as the slowest one of its job
LONGEST_POLL_S = 1.0  # if this process itself was suspended, that is not the group's silence


class Watchdog:
    """Measure the silence of one group.

    Args:
        silence_limit_s: how long any silence may last.
        step_limit_s: the lowest limit between two steps.
        clock: monotonic seconds.
    """

    def __init__(
        self, silence_limit_s: float, step_limit_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._silence_limit_s = silence_limit_s
        self._step_limit_s = step_limit_s
        self._clock = clock
        self._polled_at = clock()
        self._silence_s = 0.0
        self._slowest_step_s = 0.0
        self._progress: Progress | None = None
        self._in_step = False

    def start_job(self) -> None:
        """Forget the steps of the job before."""
        self._slowest_step_s, self._progress, self._in_step = 0.0, None, False
        self._end_silence()

    def on_message(self, progress: Progress | None) -> None:
        """End the silence. `progress` is what the message reported, if it did."""
        silence_s = self._end_silence()
        if progress is None:
            return
        if self._in_step:
            self._slowest_step_s = max(self._slowest_step_s, silence_s)
        self._in_step = _is_next_step(self._progress, progress) and progress.step < progress.num_steps
        self._progress = progress

    def is_stalled(self) -> bool:
        """Return whether the silence is too long. Call it at least once a second."""
        self._poll()
        return self._silence_s > self.limit_s

    @property
    def limit_s(self) -> float:
        """Return how long the present silence may last."""
        if self._in_step and self._slowest_step_s:
            return max(self._step_limit_s, SLOWEST_STEPS * self._slowest_step_s)
        return self._silence_limit_s

    def _end_silence(self) -> float:
        self._poll()
        silence_s, self._silence_s = self._silence_s, 0.0
        return silence_s

    def _poll(self) -> None:
        now = self._clock()
        self._silence_s += min(now - self._polled_at, LONGEST_POLL_S)
        self._polled_at = now


def _is_next_step(before: Progress | None, now: Progress) -> bool:
    """Return whether exactly one denoising step lies between the two."""
    return (
        before is not None
        and (before.phase, before.segment, before.step + 1) == (now.phase, now.segment, now.step)
        and now.phase in {"denoise", "refine"}
    )
