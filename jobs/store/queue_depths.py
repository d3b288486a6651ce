"""Read the depths of the queue, for metrics, autoscaling and `GET /capability`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from jobs.connect import redis_reached
from jobs.requirement import Requirement
from jobs.store.estimates import Run, expected_s
from jobs.store.scripts import Scripts, text


@dataclass(frozen=True)
class QueueDepth:
    """The queued jobs of one priority with one requirement.

    Attributes:
        requirement: what a group needs to run them (`jobs.requirement`), empty if it is not known.
        num_held: how many of them a limit on running jobs keeps from starting, even if a group is free.
        work_units: the size of all together.
        oldest_s: the longest time since one of the others was queued, so without the time that it ran.
    """

    priority: str
    requirement: str
    num_jobs: int
    num_held: int
    work_units: int
    oldest_s: float

    @property
    def num_startable(self) -> int:
        """Return the number of jobs that no limit keeps from starting."""
        return self.num_jobs - self.num_held

    @property
    def mean_work_units(self) -> float:
        """Return the mean size of a job."""
        return self.work_units / self.num_jobs

    @property
    def task(self) -> str | None:
        """Return the task of the jobs, None if it is not known."""
        try:
            return Requirement.parse(self.requirement).task
        except ValueError:
            return None

    def expected_run_s(self, runs: Sequence[Run]) -> float:
        """Return the expected time of all runs of jobs that may start, as if each had the mean size of all.

        It is 0 if there are no recent runs.
        """
        return self.num_startable * (expected_s(runs, self.task, self.mean_work_units) or 0.0)


def queue_depths(redis: Redis, clock: Callable[[], int] | None = None) -> list[QueueDepth]:
    """Return the depth for each priority and requirement of a queued job. Raises Unavailable.

    `clock` replaces Redis's, in ms.
    """
    found = Scripts(redis, clock).run("queue_depths")
    return [
        QueueDepth(text(priority), text(requirement), num_jobs, num_held, work_units, oldest_ms / 1000)
        for priority, requirement, num_jobs, num_held, work_units, oldest_ms in found
    ]


def recent_runs(redis: Redis) -> list[Run]:
    """Return runs of jobs that succeeded, the latest first. Raises Unavailable."""
    with redis_reached():
        entries: Any = redis.lrange("longcat:recent_runs", 0, -1)
    return [run for entry in entries if (run := Run.from_entry(entry))]
