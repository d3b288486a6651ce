"""Estimate when a queued job will have ended, from recent runs and the state of the queue.

Recent runs of exactly the same size predict a job best. Without any, a line through the runs of other sizes
does: a fixed time for each job, plus a time for each work unit. Both are medians (Theil and Sen's estimator),
so a single run that took far longer does not move them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Self

from jobs.record import Progress, QueueEstimate
from jobs.store.scripts import text

NUM_RUNS = 21
"""How many of the latest runs an estimate uses."""


@dataclass(frozen=True)
class Run:
    """A job that succeeded; `duration_s` is the time that it ran, all attempts together."""

    task: str
    work_units: int
    duration_s: float

    @classmethod
    def from_entry(cls, entry: bytes) -> Self | None:
        """Read an entry of the list `longcat:recent_runs`. Return None if it cannot be read."""
        try:
            task, work_units, duration_ms, *_ = entry.decode().split()
            return cls(task, max(1, int(work_units)), float(duration_ms) / 1000)
        except ValueError:
            return None


@dataclass(frozen=True)
class RunningJob:
    """A job that a group runs; `eta_s` is None until its worker reported one."""

    task: str
    work_units: int
    running_s: float
    eta_s: float | None


@dataclass(frozen=True)
class QueueSnapshot:
    """The state of the queue as one queued job sees it.

    Attributes:
        position: the job's position in the queue, from 1.
        task: the job's task.
        work_units: the job's size.
        num_queued: the number of queued jobs.
        queued_work_units: the size of all queued jobs together.
        num_groups: the number of worker groups that can run the job.
        recent_runs: the latest runs first.
        running: the jobs that these groups run now.
    """

    position: int
    task: str
    work_units: int
    num_queued: int
    queued_work_units: int
    num_groups: int
    recent_runs: Sequence[Run]
    running: Sequence[RunningJob]

    @classmethod
    def from_reply(cls, reply: list[Any], groups: Collection[str] | None = None) -> Self:
        """Read the reply of the script `queue_snapshot`. `groups` can run the job; None for all."""
        position, task, work_units, num_queued, queued_work_units, all_groups, runs, running = reply
        usable = {text(name) for name in all_groups}
        if groups is not None:
            usable &= set(groups)
        return cls(
            position=position,
            task=task.decode(),
            work_units=int(work_units),
            num_queued=num_queued,
            queued_work_units=int(queued_work_units or 0),
            num_groups=len(usable),
            recent_runs=[run for entry in runs if (run := Run.from_entry(entry))],
            running=[
                RunningJob(task.decode(), int(work_units), running_ms / 1000, _eta_s(progress))
                for task, work_units, progress, running_ms, group in running
                if groups is None or text(group) in usable
            ],
        )


def estimate(snapshot: QueueSnapshot) -> QueueEstimate:
    """Estimate when a job will have ended: the wait for its turn, plus its own run."""
    own_s = expected_s(snapshot.recent_runs, snapshot.task, snapshot.work_units)
    if own_s is None:
        return QueueEstimate(position=snapshot.position, eta_s=None)
    return QueueEstimate(position=snapshot.position, eta_s=_wait_s(snapshot) + own_s)


def expected_s(runs: Sequence[Run], task: str | None, work_units: float) -> float | None:
    """Return the expected duration of a run, None if there are no recent ones.

    Runs of other tasks are used only if there are none of this one, or if `task` is None.
    """
    runs = ([run for run in runs if run.task == task] or runs)[:NUM_RUNS]
    if same_size := [run.duration_s for run in runs if run.work_units == work_units]:
        return median(same_size)
    if not runs:
        return None
    fixed_s, unit_s = _line_through(runs)
    return fixed_s + unit_s * work_units


def _line_through(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the time of any job and the time for each work unit."""
    slopes = [
        (one.duration_s - other.duration_s) / (one.work_units - other.work_units)
        for one, other in combinations(runs, 2)
        if one.work_units != other.work_units
    ]
    if slopes:
        unit_s = max(0.0, median(slopes))
        fixed_s = median(run.duration_s - unit_s * run.work_units for run in runs)
        if fixed_s >= 0:
            return fixed_s, unit_s
    return 0.0, median(run.duration_s / run.work_units for run in runs)


def _wait_s(snapshot: QueueSnapshot) -> float:
    """Return how long a job waits for a group: the work ahead of it, divided among all groups."""
    num_groups = max(1, snapshot.num_groups)
    if snapshot.position + len(snapshot.running) <= num_groups:
        return 0.0
    mean_work_units = snapshot.queued_work_units / snapshot.num_queued
    queued_s = expected_s(snapshot.recent_runs, None, mean_work_units) or 0.0
    running_s = sum(_remaining_s(job, snapshot.recent_runs) for job in snapshot.running)
    return (running_s + (snapshot.position - 1) * queued_s) / num_groups


def _remaining_s(job: RunningJob, runs: Sequence[Run]) -> float:
    if job.eta_s is not None:
        return job.eta_s
    return max(0.0, (expected_s(runs, job.task, job.work_units) or 0.0) - job.running_s)


def _eta_s(progress: bytes | None) -> float | None:
    try:
        return Progress.model_validate_json(progress).eta_s if progress else None
    except ValueError:
        return None
