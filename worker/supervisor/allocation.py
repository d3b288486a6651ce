"""Divide the ranks of a worker among its jobs: how many each has, which, and when to claim another.

A job has a *width*, a number of ranks that is a power of two, and a *block*, that many neighbouring ranks
whose first is a multiple of the width. Blocks of widths that together are no more than a power of two ranks
can always be arranged. Everything here is arithmetic on frozen values: the supervisor and the simulation
(`benchmarks.simulation`) call the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

WORTHWHILE = 4.0
"""A change of width without need has to save this many times what it costs."""


@dataclass(frozen=True)
class JobInHand:
    """A job that the worker holds.

    Attributes:
        remaining_s: predicted seconds until its end, for each width that it can have.
        deadline_s: seconds until its deadline, negative if that has passed; None without one.
        width: its present number of ranks, 0 if it does not run.
    """

    job_id: str
    remaining_s: Mapping[int, float] = field(hash=False)
    deadline_s: float | None = None
    width: int = 0

    def ends_s(self, width: int, change_s: float) -> float:
        """Return in how many seconds it ends if it has this width from now on. 0 is never."""
        if not width:
            return float("inf")
        return self.remaining_s[width] + (change_s if width != self.width else 0.0)

    def is_in_time(self, width: int, change_s: float) -> bool:
        """Return whether it ends by its deadline with this width, also if it has none."""
        return self.deadline_s is None or self.ends_s(width, change_s) <= self.deadline_s

    def spare_s(self, width: int) -> float:
        """Return how long before its deadline it ends with this width."""
        return float("inf") if self.deadline_s is None else self.deadline_s - self.ends_s(width, 0.0)


def choose_widths(jobs: Sequence[JobInHand], num_ranks: int, change_s: float) -> dict[str, int]:
    """Return the width of each job, 0 for a job that has to wait because no width that it can have is left.

    Each job gets ranks before any gets more than it needs. Ranks that are short come from the jobs that can
    spare them. Then late jobs that more ranks can save get them, earliest deadline first. Ranks that are
    left go where they save the most time, if that is clearly more than a change costs; no job changes its
    width for less.

    Args:
        jobs: those in hand.
        num_ranks: the ranks of the worker, a power of two.
        change_s: what a change of width costs a job, in seconds.
    """
    division = _Division(jobs, num_ranks, change_s)
    division.give_each_its_least()
    division.save_late_jobs()
    division.use_idle_ranks()
    return division.widths


def wants_another(jobs: Sequence[JobInHand], num_ranks: int, change_s: float) -> bool:
    """Return whether a worker with a free slot should claim another job now.

    It should if it has no job, and otherwise if each job in hand that can end in time still can when a rank
    is left to the new one.
    """
    if not jobs:
        return True
    if len(jobs) >= num_ranks:
        return False
    savable = [job for job in jobs if _least_in_time(job, change_s)]
    needed = sum(_least_in_time(job, change_s) for job in savable)
    needed += sum(min(job.remaining_s) for job in jobs if job not in savable)
    return needed < num_ranks


def _least_in_time(job: JobInHand, change_s: float) -> int:
    """Return the least width with which a job ends in time, 0 if there is none."""
    return next((width for width in sorted(job.remaining_s) if job.is_in_time(width, change_s)), 0)


class _Division:
    """The ranks of a worker while they are divided among jobs."""

    def __init__(self, jobs: Sequence[JobInHand], num_ranks: int, change_s: float) -> None:
        self._jobs = sorted(jobs, key=lambda job: (_or_never(job.deadline_s), job.job_id))
        self._num_ranks = num_ranks
        self._change_s = change_s
        self.widths = {job.job_id: job.width if job.width in job.remaining_s else 0 for job in self._jobs}

    @property
    def _num_idle(self) -> int:
        return self._num_ranks - sum(self.widths.values())

    def _width(self, job: JobInHand) -> int:
        return self.widths[job.job_id]

    def give_each_its_least(self) -> None:
        """Give ranks to the jobs that have none."""
        for job in self._jobs:
            least = min(job.remaining_s)
            if not self._width(job) and self._make_room(least, besides=job, if_late=True):
                self.widths[job.job_id] = least

    def save_late_jobs(self) -> None:
        """Widen jobs that would be late as much as they need, as long as that makes no other late."""
        for job in self._jobs:
            width, least = self._width(job), _least_in_time(job, self._change_s)
            if not width or job.is_in_time(width, self._change_s) or least < width:
                continue
            if self._make_room(least - width, besides=job, if_late=False):
                self.widths[job.job_id] = least

    def use_idle_ranks(self) -> None:
        """Double the width of the job for which that saves the most time, until no rank is left."""
        while candidates := [job for job in self._jobs if self._can_double(job)]:
            best = max(candidates, key=self._saved_s)
            self.widths[best.job_id] *= 2

    def _can_double(self, job: JobInHand) -> bool:
        width = self._width(job)
        if not width or width > self._num_idle or 2 * width not in job.remaining_s:
            return False
        return self._saved_s(job) > (WORTHWHILE * self._change_s if width == job.width else 0.0)

    def _saved_s(self, job: JobInHand) -> float:
        width = self._width(job)
        return job.remaining_s[width] - job.remaining_s[2 * width]

    def _make_room(self, num_ranks: int, *, besides: JobInHand, if_late: bool) -> bool:
        """Halve jobs until so many ranks are idle. Return False, and change nothing, if that is not possible.

        Args:
            num_ranks: how many have to be idle.
            besides: a job that keeps its ranks.
            if_late: whether to halve jobs that end late then, if there are no others.
        """
        before = dict(self.widths)
        while self._num_idle < num_ranks:
            halves = [
                (job.is_in_time(half, self._change_s), job.spare_s(half), job.job_id)
                for job in self._jobs
                if job is not besides and (half := self._width(job) // 2) in job.remaining_s
            ]
            if not halves or not (max(halves)[0] or if_late):
                self.widths = before
                return False
            self.widths[max(halves)[2]] //= 2
        return True


def _or_never(deadline_s: float | None) -> float:
    return float("inf") if deadline_s is None else deadline_s


def place(widths: Mapping[str, int], present_blocks: Mapping[str, range], num_ranks: int) -> dict[str, range]:
    """Return a block for each job that has a width, so that no rank has two jobs.

    A job whose width stays keeps its block, unless the others do not fit then: as few jobs as possible move.
    A job whose width changes gets a block within or around its present one if that is free.

    Args:
        widths: of the jobs, powers of two and 0, together no more than `num_ranks`.
        present_blocks: those of the jobs that run, by job.
        num_ranks: the ranks of the worker, a power of two.
    """
    wanted = {job_id: width for job_id, width in widths.items() if width}
    if sum(wanted.values()) > num_ranks:
        raise ValueError(f"widths {wanted} are more than {num_ranks} ranks")
    staying = [job_id for job_id, width in wanted.items() if len(present_blocks.get(job_id, ())) == width]
    for num_moves in range(len(staying) + 1):
        for moved in combinations(staying, num_moves):
            kept = {job_id: present_blocks[job_id] for job_id in staying if job_id not in moved}
            blocks = _place_beside(kept, wanted, present_blocks, num_ranks)
            if blocks is not None:
                return blocks
    raise AssertionError("powers of two always fit")  # pragma: no cover


def _place_beside(
    kept: Mapping[str, range], wanted: Mapping[str, int], present_blocks: Mapping[str, range], num_ranks: int
) -> dict[str, range] | None:
    """Place the jobs that are not kept. Return None if they do not fit beside those.

    The widest come first, so each takes ranks that narrower ones could use only together: if a block is
    left for each, it does not matter which one is taken.
    """
    blocks = dict(kept)
    for job_id in sorted(wanted.keys() - kept.keys(), key=lambda job_id: (-wanted[job_id], job_id)):
        width, present = wanted[job_id], present_blocks.get(job_id, range(0))
        taken = {rank for block in blocks.values() for rank in block}
        free = [
            block
            for start in range(0, num_ranks, width)
            if taken.isdisjoint(block := range(start, start + width))
        ]
        if not free:
            return None
        blocks[job_id] = max(free, key=lambda block: (_num_shared(block, present), -block.start))
    return blocks


def _num_shared(block: range, other: Iterable[int]) -> int:
    return len(set(block).intersection(other))
