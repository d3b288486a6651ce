"""Turn the intervals of a job into the Trace Event Format (JSON), which Perfetto and Chrome show.

`worker.supervisor.upload` stores the file beside the video. In it a process is a GPU group. Its ranks are one
row, on which the group's jobs follow each other; every job has rows of its own for the other lanes. So the
files of several jobs can be merged by joining their events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

from jobs.store.holder import Lease
from worker.supervisor.timeline import RANKS
from worker.telemetry import Interval, Lane

TraceEvent = dict[str, Any]

ROW_NAMES: dict[Lane, str] = {"job": "waits", "ranks": "ranks", "video": "video", "storage": "storage"}


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
