"""Divide the ranks of a worker among its jobs: how many each has, and which.

A job has a *width*, a number of ranks that is a power of two, and a *block*, that many neighbouring ranks
whose first is a multiple of the width. Blocks of widths that together are no more than a power of two ranks
can always be arranged. Everything here is arithmetic on frozen values: the supervisor and the simulation
(`benchmarks.simulation`) call the same functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from types import MappingProxyType

from jobs.order import PRIORITIES, Priority

SLOTS_PER_RANK = 2
"""How many jobs a worker may hold for each rank.

If it held no more than one, an urgent job would wait in the queue for the end of another whenever each rank
has a job. A job in hand takes ranks from others at their next step.
"""

WORTHWHILE = 4.0
"""A change of width without need has to save this many times what it costs."""

MARGIN = 0.05
"""The share by which a job may take longer than predicted and still count as in time."""

LATE_S = 1800.0
"""How long after its deadline a late job has the same precedence as one that can still be in time."""

EFFICIENCY: Mapping[int, float] = MappingProxyType({1: 1.0, 2: 0.96, 4: 0.92, 8: 0.86, 16: 0.80})
"""Of several ranks that share the tokens of a video, against one.

0.86 is published for 8; 2 and 4 lie between; for 16, the loss from 8 to 16 that is reported elsewhere is
added. None is measured with this model.
"""


def efficiency(width: int, *, guided: bool) -> float:
    """Return the efficiency of a width. With guidance, each half of the ranks has a pass of its own."""
    return EFFICIENCY[max(1, width // 2) if guided else width]


def remaining_by_width(
    known_s: Mapping[int, float], widths: Iterable[int], *, guided: bool
) -> dict[int, float]:
    """Return the seconds that a job takes with each width, from those that are known.

    Args:
        known_s: measured or predicted seconds by width, at least one. A width that is missing follows from
            the nearest one and the efficiency of both.
        widths: those that the job can have.
        guided: whether the job has guidance.
    """

    def speed(width: int) -> float:
        return width * efficiency(width, guided=guided)

    remaining_s = {}
    for width in widths:
        nearest = min(known_s, key=lambda known: max(known, width) / min(known, width))
        remaining_s[width] = known_s[nearest] * speed(nearest) / speed(width)
    return remaining_s


@dataclass(frozen=True)
class JobInHand:
    """A job that the worker holds.

    Attributes:
        remaining_s: predicted seconds until its end, for each width that it can have.
        deadline_s: seconds until its deadline, negative if that has passed; None without one.
        width: its present number of ranks, 0 if it does not run.
        is_fixed: it keeps its present ranks, because it cannot be stopped now.
        priority: it loses no ranks to a job of a lower one.
    """

    job_id: str
    remaining_s: Mapping[int, float] = field(hash=False)
    deadline_s: float | None = None
    width: int = 0
    is_fixed: bool = False
    priority: Priority = "normal"

    def is_in_time(self, width: int, change_s: float) -> bool:
        """Return whether it ends by its deadline if it has this width from now on."""
        cost_s = change_s if width != self.width else 0.0
        return self.deadline_s is None or self.remaining_s[width] * (1 + MARGIN) + cost_s <= self.deadline_s

    def least_in_time(self, change_s: float) -> int | None:
        """Return the least width with which it ends by its deadline, None if it will be late with any."""
        return next((width for width in sorted(self.remaining_s) if self.is_in_time(width, change_s)), None)

    def widest(self, num_ranks: int) -> int:
        """Return the greatest width that it can have with so many ranks, 0 if there is none."""
        return max((width for width in self.remaining_s if width <= num_ranks), default=0)


def choose_widths(jobs: Sequence[JobInHand], num_ranks: int, change_s: float) -> dict[str, int]:
    """Return the width of each job, 0 for one that has to wait.

    Jobs of high priority come before all others. Among those of one priority, the earliest deadline comes
    first, and gets as many ranks as it needs to be met. A job that will be late anyway gets the least that it
    can have, and its turn `LATE_S` later. Then they keep the ranks that they have, as far as there are any
    left, and the next priority follows. The rest goes where it saves the most time, if that is clearly more
    than a change costs.

    Args:
        jobs: those in hand, in the order in which they were claimed. Jobs without deadlines keep it.
        num_ranks: the ranks of the worker, a power of two.
        change_s: what a change of width costs a job, in seconds.
    """
    widths = {job.job_id: job.width for job in jobs if job.is_fixed}
    in_order = sorted((job for job in jobs if not job.is_fixed), key=lambda job: _precedence(job, change_s))

    def num_idle() -> int:
        return num_ranks - sum(widths.values())

    for priority in PRIORITIES:
        of_priority = [job for job in in_order if job.priority == priority]
        for job in of_priority:
            needed = job.least_in_time(change_s) or min(job.remaining_s)
            widths[job.job_id] = job.widest(min(needed, num_idle()))
        for job in of_priority:
            if width := widths[job.job_id]:
                widths[job.job_id] = job.widest(max(width, min(job.width, width + num_idle())))
    while doubled := _most_worthwhile(in_order, widths, num_idle(), change_s):
        widths[doubled.job_id] *= 2
    return widths


def _precedence(job: JobInHand, change_s: float) -> float:
    """Return the deadline of a job; a later one if it cannot be met."""
    if job.deadline_s is None:
        return inf
    return job.deadline_s if job.least_in_time(change_s) else job.deadline_s + LATE_S


def _most_worthwhile(
    jobs: Iterable[JobInHand], widths: Mapping[str, int], num_idle: int, change_s: float
) -> JobInHand | None:
    """Return the job that gains the most from twice its width, None if none gains enough."""
    best, best_s = None, 0.0
    for job in jobs:
        width = widths[job.job_id]
        if width and width <= num_idle and 2 * width in job.remaining_s:
            saved_s = job.remaining_s[width] - job.remaining_s[2 * width]
            if saved_s > max(best_s, WORTHWHILE * change_s if width == job.width else 0.0):
                best, best_s = job, saved_s
    return best


def place(
    widths: Mapping[str, int],
    present_blocks: Mapping[str, range],
    num_ranks: int,
    fixed: Collection[str] = (),
) -> dict[str, range]:
    """Return a block for each job that has a width, so that no rank has two jobs.

    A job whose width stays keeps its block, unless the others do not fit then: as few jobs as possible move,
    and those that are fixed only if nothing else fits. A job whose width changes gets a block within or
    around its present one if that is free.

    Args:
        widths: of the jobs, powers of two and 0, together no more than `num_ranks`.
        present_blocks: those of the jobs that run, by job.
        num_ranks: the ranks of the worker, a power of two.
        fixed: jobs that cannot be stopped now.
    """
    wanted = {job_id: width for job_id, width in widths.items() if width}
    if sum(wanted.values()) > num_ranks:
        raise ValueError(f"widths {wanted} are more than {num_ranks} ranks")
    staying = [job_id for job_id, width in wanted.items() if len(present_blocks.get(job_id, ())) == width]
    movable = [job_id for job_id in staying if job_id not in fixed]
    for candidates in (movable, staying):
        for num_moves in range(len(candidates) + 1):
            for moved in combinations(candidates, num_moves):
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
