"""Estimate when a queued job will have ended, from recent runs and the state of the queue.

Recent runs of exactly the same size predict a job best. Without any, a line through the runs of other sizes
does: a fixed time for each job, plus a time for each work unit. Both are medians (Theil and Sen's estimator),
so a single run that took far longer does not move them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Self

from jobs.fleet import Fleet
from jobs.order import PRIORITIES
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
    group: str


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits.

    Attributes:
        num_before: the number of jobs of each priority that start before it.
        requirement: what a group needs to run it (`jobs.requirement`), empty if it is not known.
        is_queued: False for a job that is not submitted yet.
    """

    num_before: Mapping[str, int]
    task: str
    work_units: int
    priority: str
    requirement: str
    is_queued: bool


@dataclass(frozen=True)
class QueueSnapshot:
    """The state of the queue, and the jobs for which an estimate is wanted.

    Attributes:
        num_queued: the number of queued jobs.
        queued_work_units: the size of all queued jobs together.
        num_groups: the number of worker groups.
        recent_runs: the latest runs first.
        num_running: the number of jobs that run now.
        running: a sample of them, all if they are few.
        depths: the number of queued jobs by requirement and priority.
        wanted: the jobs to estimate, by id.
    """

    num_queued: int
    queued_work_units: int
    num_groups: int
    recent_runs: Sequence[Run]
    num_running: int
    running: Sequence[RunningJob]
    depths: Mapping[str, Mapping[str, int]]
    wanted: Mapping[str, QueuedJob]

    @classmethod
    def from_reply(cls, reply: list[Any]) -> Self:
        """Read the reply of the script `queue_snapshot`."""
        num_queued, queued_work_units, num_groups, runs, num_running, running, depths, wanted = reply
        return cls(
            num_queued=num_queued,
            queued_work_units=int(queued_work_units or 0),
            num_groups=num_groups,
            recent_runs=[run for entry in runs if (run := Run.from_entry(entry))],
            num_running=num_running,
            running=[
                RunningJob(text(task), int(work_units), running_ms / 1000, _eta_s(progress), text(group))
                for task, work_units, progress, running_ms, group in running
            ],
            depths={
                text(requirement): dict(zip(PRIORITIES, by_priority, strict=True))
                for requirement, *by_priority in depths
            },
            wanted={
                text(job_id): QueuedJob(
                    num_before=dict(zip(PRIORITIES, num_before, strict=True)),
                    task=text(task),
                    work_units=int(work_units),
                    priority=text(priority),
                    requirement=text(requirement),
                    is_queued=is_queued == 1,
                )
                for job_id, num_before, task, work_units, priority, requirement, is_queued in wanted
            },
        )


def estimates(snapshot: QueueSnapshot, fleet: Fleet | None = None) -> dict[str, QueueEstimate]:
    """Estimate when each wanted job will have ended: the wait for its turn, plus its own run.

    If `fleet` is given, only its groups that are up and can run the job count, and the queued and running
    jobs of these groups. There is no ETA if there is no such group.
    """
    return {job_id: _estimate(snapshot, job, fleet) for job_id, job in snapshot.wanted.items()}


def _estimate(snapshot: QueueSnapshot, job: QueuedJob, fleet: Fleet | None) -> QueueEstimate:
    num_groups, running = snapshot.num_groups, snapshot.running
    position = 1 + sum(job.num_before.values())
    if fleet:
        pools = fleet.pools_for(job.requirement)
        groups = {group.group for pool in pools for group in pool.groups_up}
        num_groups, running = len(groups), [other for other in running if other.group in groups]
        if pools and job.requirement:
            position = 1 + _num_rivals_before(snapshot, job, fleet)
    own_s = expected_s(snapshot.recent_runs, job.task, job.work_units)
    if own_s is None or (fleet and not num_groups):
        return QueueEstimate(position=position, eta_s=None, run_s=own_s)
    wait_s = _wait_s(snapshot, num_groups, running, position)
    return QueueEstimate(position=position, eta_s=wait_s + own_s, run_s=own_s)


def _num_rivals_before(snapshot: QueueSnapshot, job: QueuedJob, fleet: Fleet) -> int:
    """Return how many queued jobs may start before this one in its groups."""
    rivals = fleet.rivals_of(job.requirement, snapshot.depths)
    num_before = 0
    for priority, num_in_queue in job.num_before.items():
        num_rivals = sum(snapshot.depths[requirement][priority] for requirement in rivals)
        if job.is_queued and priority == job.priority:
            num_rivals = max(0, num_rivals - 1)  # it is one of them itself
        num_before += min(num_in_queue, num_rivals)
    return num_before


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


def _wait_s(snapshot: QueueSnapshot, num_groups: int, running: Sequence[RunningJob], position: int) -> float:
    """Return how long a job waits if each group takes the next one as soon as it is free.

    `running` are those jobs of the sample that these groups run. The jobs ahead count as if each had the mean
    size of all queued ones. A group that runs several jobs at a time takes one whenever one of them ends.
    """
    mean_work_units = snapshot.queued_work_units / max(1, snapshot.num_queued)
    run_ms = max(1, round(1000 * (expected_s(snapshot.recent_runs, None, mean_work_units) or 0.0)))
    scale = snapshot.num_running / len(snapshot.running) if snapshot.running else 0.0
    num_by_free_ms = {0: max(0.0, max(1, num_groups) - scale * len(running))}
    for job in running:
        free_ms = max(0, round(1000 * _remaining_s(job, snapshot.recent_runs)))
        num_by_free_ms[free_ms] = num_by_free_ms.get(free_ms, 0.0) + scale

    def num_started(wait_ms: int) -> float:
        """Return how many queued jobs have started by then; a fraction where a sample stands for all.

        A group starts one when it is free, and one more after each run.
        """
        return sum(
            num * ((wait_ms - free_ms) // run_ms + 1)
            for free_ms, num in num_by_free_ms.items()
            if free_ms <= wait_ms
        )

    longest_ms = max(num_by_free_ms) + position * run_ms
    # The earliest time by which the job has started, and those ahead of it.
    return bisect_left(range(longest_ms), float(position), key=num_started) / 1000


def _remaining_s(job: RunningJob, runs: Sequence[Run]) -> float:
    if job.eta_s is not None:
        return job.eta_s
    return max(0.0, (expected_s(runs, job.task, job.work_units) or 0.0) - job.running_s)


def _eta_s(progress: bytes | None) -> float | None:
    try:
        return Progress.model_validate_json(progress).eta_s if progress else None
    except ValueError:
        return None
