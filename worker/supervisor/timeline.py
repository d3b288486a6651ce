"""Collect the intervals of one job: when each piece of work for it was done, and in which lane.

`worker.supervisor.trace_events` writes them as a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.record import Phase, Progress, Status
from worker.supervisor.tracing import JobSpans, NoSpans
from worker.telemetry import Interval, Lane

MAX_DETAILS = 10_000  # about 2 MB of JSON
RANKS: Lane = "ranks"

_LANES: dict[Phase, Lane] = {"load": "job", "upload": "storage"}  # all other phases are the ranks'


class JobTimeline:
    """The intervals of one job from its claim on. Any thread may add one.

    They also become trace spans, except details.
    """

    def __init__(self, spans: JobSpans = NoSpans(), clock: Callable[[], float] = time.time) -> None:  # noqa: B008 - stateless
        self._spans = spans
        self._clock = clock
        self._ended: list[Interval] = []
        self._phase: Progress | None = Progress(phase="load")
        self._phase_began_s = self._last_progress_s = clock()
        self._is_finished = False

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Return all intervals; the current phase counts as if it ended now."""
        present = (self._present_phase(self._clock()),) if self._phase else ()
        return (*self._ended, *present)

    def enter_phase(self, progress: Progress) -> None:
        """Record that the job has come this far.

        Within a phase, the time since the last call is a detail of it: a step, or a chunk of frames.
        """
        now = self._clock()
        if self._phase and _position(self._phase) == _position(progress):
            self.add(_detail(progress, self._last_progress_s, now))
        else:
            self._end_phase(now)
            self._phase_began_s = now
        self._phase, self._last_progress_s = progress, now

    def end_phase(self) -> None:
        """Record that the present phase ended and no other follows yet."""
        self._end_phase(self._clock())

    def add(self, interval: Interval, *, failed: bool = False) -> None:
        """Add an interval that was measured elsewhere. After `MAX_DETAILS` intervals, details are dropped."""
        if not interval.detail:
            self._spans.add(interval, failed=failed)
        if not interval.detail or len(self._ended) < MAX_DETAILS:
            self._ended.append(interval)

    def add_wait(self) -> None:
        """Add the wait for the GPUs, which began when the last interval ended."""
        began_s = self._ended[-1].ended_s if self._ended else self._phase_began_s
        self.add(Interval(name="wait", lane="job", began_s=began_s, ended_s=self._clock()))

    @contextmanager
    def measure(self, name: str, lane: Lane) -> Iterator[None]:
        """Add the body of the `with` statement as an interval, unless it raises."""
        began_s = self._clock()
        yield
        self.add(Interval(name=name, lane=lane, began_s=began_s, ended_s=self._clock()))

    def finish(self, status: Status | None) -> None:
        """End the present phase and the spans with the status of the job, None if that is not known.

        Only the first call counts.
        """
        if not self._is_finished:
            self._is_finished = True
            self._end_phase(self._clock(), failed=status == "failed")
            self._spans.finish(status)

    def _end_phase(self, now: float, *, failed: bool = False) -> None:
        if self._phase:
            self.add(self._present_phase(now), failed=failed)
            self._phase = None

    def _present_phase(self, now: float) -> Interval:
        assert self._phase
        phase, segment = self._phase.phase, self._phase.segment
        lane = _LANES.get(phase, RANKS)
        return Interval(name=phase, lane=lane, began_s=self._phase_began_s, ended_s=now, segment=segment)


def _position(progress: Progress) -> tuple[Phase, int]:
    return progress.phase, progress.segment


def _detail(progress: Progress, began_s: float, ended_s: float) -> Interval:
    name = f"step {progress.step}" if progress.step else "chunk"
    return Interval(
        name=name, lane=RANKS, began_s=began_s, ended_s=ended_s, segment=progress.segment, detail=True
    )
