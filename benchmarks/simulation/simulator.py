"""Run a trace on a fleet: a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from benchmarks.simulation.fleets import Fleet, Group
from benchmarks.simulation.queues import Clock, Queue
from benchmarks.simulation.times import run_s
from benchmarks.simulation.trace import Arrival

Event = Callable[[], None]

SPREAD = 0.05
"""Run times are up to this share shorter or longer than modelled."""

CHECKPOINT_S = 60.0
"""What was computed since the last checkpoint is computed again after a crash."""

LEASE_S = 30.0
"""How long it takes until a job whose group has died is queued again."""

RESTART_S = 180.0
"""How long a group takes to load the model again."""


@dataclass(frozen=True)
class Outcome:
    """A job that has ended; times in seconds since the start of the trace."""

    arrival: Arrival
    started_s: float
    ended_s: float
    gpu_s: float
    predicted_s: float | None
    num_crashes: int

    @property
    def response_s(self) -> float:
        """Return the time from submission to the end."""
        return self.ended_s - self.arrival.at_s

    @property
    def deadline_met(self) -> bool:
        """Return whether it ended by its deadline."""
        return self.arrival.deadline_s is None or self.response_s <= self.arrival.deadline_s


@dataclass
class _Job:
    arrival: Arrival
    work: float = 1.0  # share that is still to be done
    started_s: float | None = None
    gpu_s: float = 0.0
    predicted_s: float | None = None
    num_crashes: int = 0


class Simulation:
    """One run of a trace.

    Args:
        mtbf_s: the mean time that a GPU works until its group dies; None for never.
        seed: of the spread of run times and of crashes.
    """

    def __init__(
        self, queue: Queue, fleet: Fleet, clock: Clock, *, mtbf_s: float | None = None, seed: int = 0
    ) -> None:
        self._queue = queue
        self._fleet = fleet
        self._clock = clock
        self._mtbf_s = mtbf_s
        self._random = random.Random(seed)  # noqa: S311
        self._events: list[tuple[float, int, Event]] = []
        self._order = count()  # of events at the same time
        self._jobs: dict[int, _Job] = {}
        self._num_waiting = 0
        self._outcomes: list[Outcome] = []

    def run(self, trace: Sequence[Arrival]) -> list[Outcome]:
        """Return the outcomes in the order in which the jobs ended."""
        for number, arrival in enumerate(trace):
            self._at(arrival.at_s, partial(self._arrive, number, arrival))
        while self._events:
            at_s, _, event = heapq.heappop(self._events)
            assert at_s >= self._clock.now_s
            self._clock.now_s = at_s
            event()
            self._start_jobs()
        return self._outcomes

    def _at(self, at_s: float, event: Event) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def _arrive(self, number: int, arrival: Arrival) -> None:
        eta_s = self._queue.submit(number, arrival)
        self._jobs[number] = _Job(arrival, predicted_s=eta_s)
        self._num_waiting += 1

    def _start_jobs(self) -> None:
        while self._num_waiting and (group := self._fleet.take(self._num_waiting)):
            number = self._queue.claim(group)
            if number is None:
                self._fleet.release(group)
                return
            self._num_waiting -= 1
            self._start(number, group)

    def _start(self, number: int, group: Group) -> None:
        job, now_s = self._jobs[number], self._clock.now_s
        if job.started_s is None:
            job.started_s = now_s
        whole_s = run_s(job.arrival.plan, group.num_ranks) * self._random.uniform(1 - SPREAD, 1 + SPREAD)
        duration_s = job.work * whole_s
        crash_s = self._random.expovariate(group.num_ranks / self._mtbf_s) if self._mtbf_s else duration_s
        if crash_s < duration_s:
            done = crash_s // CHECKPOINT_S * CHECKPOINT_S / whole_s
            self._at(now_s + crash_s, partial(self._crash, number, group, crash_s, done))
        else:
            self._at(now_s + duration_s, partial(self._end, number, group, duration_s))

    def _end(self, number: int, group: Group, duration_s: float) -> None:
        job = self._jobs.pop(number)
        assert job.started_s is not None
        self._queue.succeed(number)
        self._fleet.release(group)
        gpu_s = job.gpu_s + duration_s * group.num_ranks
        self._outcomes.append(
            Outcome(job.arrival, job.started_s, self._clock.now_s, gpu_s, job.predicted_s, job.num_crashes)
        )

    def _crash(self, number: int, group: Group, duration_s: float, done: float) -> None:
        job = self._jobs[number]
        job.gpu_s += duration_s * group.num_ranks
        job.work = max(0.0, job.work - done)
        job.num_crashes += 1
        self._at(self._clock.now_s + LEASE_S, partial(self._requeue, number))
        self._at(self._clock.now_s + RESTART_S, partial(self._fleet.release, group))

    def _requeue(self, number: int) -> None:
        self._queue.crash(number)
        self._num_waiting += 1
