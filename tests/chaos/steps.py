"""Log which leader ran which step of which job, and when."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

Place = tuple[int, str, int]  # segment, stage, step


@dataclass(frozen=True)
class Line:
    """An event of a job. `place` is set if it was a step; `at` is in seconds."""

    at: float
    pid: int
    group: str
    job_id: str
    place: Place | None

    @classmethod
    def read(cls, text: str) -> Line:
        at, pid, group, job_id, *words = text.split()
        place = (int(words[0]), words[1], int(words[2])) if words else None
        return cls(float(at), int(pid), group, job_id, place)


@dataclass(frozen=True)
class StepLog:
    """A file to which the leaders of all groups append."""

    path: Path

    def add(self, group: str, job_id: str, place: Place | None) -> None:
        words = [f"{time.time():.3f}", os.getpid(), group, job_id, *(place or ())]
        with self.path.open("a") as log:
            log.write(" ".join(map(str, words)) + "\n")

    def lines(self) -> Iterator[Line]:
        if self.path.exists():
            yield from map(Line.read, self.path.read_text().splitlines())

    def running_again(self, job_id: str, after: float, without: Collection[int]) -> float | None:
        """Return when a leader other than `without` first ran the job after this time."""
        times = (
            line.at
            for line in self.lines()
            if line.job_id == job_id and line.at > after and line.pid not in without
        )
        return next(times, None)

    def work(self, job_ids: Collection[str]) -> tuple[int, int]:
        """Return the number of steps that were run for these jobs, and of distinct steps among them."""
        steps = [(line.job_id, *line.place) for line in self.lines() if line.place and line.job_id in job_ids]
        return len(steps), len(set(steps))
