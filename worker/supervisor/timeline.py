"""Record when each piece of work for a job was done, and write it as a file that Perfetto and Chrome show.

`JobTimeline` collects the intervals of one job. `trace_events` turns them into Trace Event Format (JSON),
which `worker.supervisor.upload` stores beside the video. In that file a process is a GPU group. Its ranks are
one row, on which the group's jobs follow each other; every job has rows of its own for the other lanes. So
the files of several jobs can be merged by joining their events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from jobs.record import Phase, Progress, Status
from jobs.store.holder import Lease
from worker.supervisor.tracing import JobSpans, NoSpans
from worker.telemetry import Interval, Lane

TraceEvent = dict[str, Any]

MAX_DETAILS = 10_000  # about 2 MB of JSON
RANKS: Lane = "ranks"
ROW_NAMES: dict[Lane, str] = {"job": "waits", "ranks": "ranks", "video": "video", "storage": "storage"}

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


def trace_events(lease: Lease, intervals: Sequence[Interval]) -> dict[str, Any]:
    """Return the Trace Event Format of one claim; that of the first begins with the wait in the queue."""
    queued = [_queued(lease, intervals)] if lease.fence == 1 and intervals else []
    events = [_event(lease, interval) for interval in (*queued, *intervals)]
    events.sort(key=lambda event: (event["tid"], event["ts"], -event["dur"]))
    return {"traceEvents": [*_names(lease), *events], "displayTimeUnit": "ms"}


def _queued(lease: Lease, intervals: Sequence[Interval]) -> Interval:
    """Return the wait in the queue, from the submission (Redis's clock) to the claim (this machine's)."""
    claimed_s = min(interval.began_s for interval in intervals)
    submitted_s = min(lease.job.created_at.timestamp(), claimed_s)
    return Interval(name="queued", lane="job", began_s=submitted_s, ended_s=claimed_s)


def _event(lease: Lease, interval: Interval) -> TraceEvent:
    return {
        "name": interval.name,
        "cat": interval.lane,
        "ph": "X",
        "ts": _us(interval.began_s),
        "dur": max(0, _us(interval.ended_s) - _us(interval.began_s)),
        "pid": _pid(lease),
        "tid": _tid(lease, interval.lane),
        "args": {"job": lease.job.id, "attempt": lease.fence, "segment": interval.segment},
    }


def _names(lease: Lease) -> Iterator[TraceEvent]:
    """Yield the names of the process and its rows, and the order of the rows."""
    yield _metadata(lease, "process_name", 0, name=f"group {lease.job.group or ''}".rstrip())
    for index, (lane, name) in enumerate(ROW_NAMES.items()):
        tid, of_job = _tid(lease, lane), "" if lane == RANKS else f" of {lease.job.id[:8]}"
        yield _metadata(lease, "thread_name", tid, name=f"{name}{of_job}")
        yield _metadata(lease, "thread_sort_index", tid, sort_index=0 if lane == RANKS else 1 + index)


def _metadata(lease: Lease, kind: str, tid: int, **args: object) -> TraceEvent:
    return {"name": kind, "ph": "M", "pid": _pid(lease), "tid": tid, "args": args}


def _pid(lease: Lease) -> int:
    return _number_of(lease.job.group or "")


def _tid(lease: Lease, lane: Lane) -> int:
    return 1 if lane == RANKS else _number_of(f"{lease.job.id} {lane}")


def _number_of(name: str) -> int:
    """Return a positive number of 31 bits, the same for the same name."""
    return 2 + crc32(name.encode()) % (2**31 - 2)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
