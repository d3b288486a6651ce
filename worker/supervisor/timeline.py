"""A picture of how a job went, as Perfetto and Chrome's tracing show it (Trace Event Format, JSON).

`worker.supervisor.upload` stores it beside the video. A process of the picture is a group; its ranks are one
row, on which the jobs of a group follow each other, and each job has rows of its own for what is done beside
them. So the pictures of several jobs become one when their events are put together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

from jobs.store.holder import Lease
from worker.stages import Lane, Stage

Event = dict[str, Any]

RANKS: Lane = "ranks"
TITLES: dict[Lane, str] = {"job": "waits", "ranks": "ranks", "film": "film", "storage": "storage"}


def timeline(claim: Lease, stages: Sequence[Stage]) -> dict[str, Any]:
    """The picture of one attempt; the first one's begins with the wait in the queue."""
    queued = [_queued(claim, stages)] if claim.attempt == 1 and stages else []
    events = [_event(claim, stage) for stage in (*queued, *stages)]
    events.sort(key=lambda event: (event["tid"], event["ts"], -event["dur"]))
    return {"traceEvents": [*_names(claim), *events], "displayTimeUnit": "ms"}


def _queued(claim: Lease, stages: Sequence[Stage]) -> Stage:
    """From the order, in Redis's time, to the claim, in this machine's."""
    claimed_s = min(stage.began_s for stage in stages)
    ordered_s = min(claim.job.created_at.timestamp(), claimed_s)
    return Stage(name="queued", lane="job", began_s=ordered_s, ended_s=claimed_s)


def _event(claim: Lease, stage: Stage) -> Event:
    return {
        "name": stage.name,
        "cat": stage.lane,
        "ph": "X",
        "ts": _us(stage.began_s),
        "dur": max(0, _us(stage.ended_s) - _us(stage.began_s)),
        "pid": _pid(claim),
        "tid": _tid(claim, stage.lane),
        "args": {"job": claim.job.id, "attempt": claim.attempt, "segment": stage.segment},
    }


def _names(claim: Lease) -> Iterator[Event]:
    """What processes and rows are called, and in which order they stand."""
    yield _meta(claim, "process_name", 0, name=f"group {claim.job.group or ''}".rstrip())
    for place, (lane, title) in enumerate(TITLES.items()):
        tid, of_job = _tid(claim, lane), "" if lane == RANKS else f" of {claim.job.id[:8]}"
        yield _meta(claim, "thread_name", tid, name=f"{title}{of_job}")
        yield _meta(claim, "thread_sort_index", tid, sort_index=0 if lane == RANKS else 1 + place)


def _meta(claim: Lease, kind: str, tid: int, **args: object) -> Event:
    return {"name": kind, "ph": "M", "pid": _pid(claim), "tid": tid, "args": args}


def _pid(claim: Lease) -> int:
    return _number(claim.job.group or "")


def _tid(claim: Lease, lane: Lane) -> int:
    return 1 if lane == RANKS else _number(f"{claim.job.id} {lane}")


def _number(name: str) -> int:
    """The same for the same name, positive, of 31 bits, and hardly that of another."""
    return 2 + crc32(name.encode()) % (2**31 - 2)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
