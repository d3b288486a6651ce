"""Run a trace on a fleet: a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import ceil, inf

from benchmarks.simulation.fleets import Fleet, Group
from benchmarks.simulation.queues import LEASE_S, Claim, Clock, Queue
from benchmarks.simulation.times import run_s
from benchmarks.simulation.trace import Arrival
from model.spec.plan import Plan

Event = Callable[[], None]

SPREAD = 0.05
"""Run times are up to this share shorter or longer than modelled."""

CHECKPOINT_S = 60.0
"""How often a running job is saved. What was computed since is computed again after a crash."""

SWEEP_S = 1.0
"""How often a process of the service sweeps. The simulation leaves out sweeps that find nothing."""

RARE_SWEEP_S = 30.0
"""How often it sweeps nevertheless, to remove records."""

RESTART_S = 180.0
"""How long a group takes to load the model again."""


@dataclass(frozen=True)
class Outcome:
    """A job that has ended; times in seconds since the start of the trace.

    Attributes:
        gpu_s: GPU time of all attempts together.
        served: at several times, the time and its GPU time so far, which grows linearly in between.
        lost_gpu_s: GPU time since the last checkpoint before each crash.
        failed: the job crashed in every attempt that it had.
    """

    arrival: Arrival
    started_s: float
    ended_s: float
    gpu_s: float
    served: Sequence[tuple[float, float]]
    lost_gpu_s: float
    predicted_s: float | None
    num_crashes: int
    failed: bool = False

    @property
    def response_s(self) -> float:
        """Return the time from submission to the end."""
        return self.ended_s - self.arrival.at_s

    @property
    def deadline_met(self) -> bool:
        """Return whether it succeeded by its deadline."""
        in_time = self.arrival.deadline_s is None or self.response_s <= self.arrival.deadline_s
        return in_time and not self.failed


@dataclass
class _Job:
    arrival: Arrival
    predicted_s: float | None
    started_s: float | None = None
    gpu_s: float = 0.0
    served: list[tuple[float, float]] = field(default_factory=list)
    lost_gpu_s: float = 0.0
    num_crashes: int = 0


@dataclass
class Attempt:
    """A run of a job, until it ends, crashes or is drained.

    Attributes:
        pace: of its run time to the modelled one.
        life_gpu_s: GPU time after which the group dies, counted from the last change of ranks.
        num_ranks: how many it has, 0 while it waits for some.
        done: the share that was done at the last change of ranks.
        since_s: when it went on after that.
        counted_s: up to when its GPU time is counted.
        unsaved_gpu_s: GPU time since it was saved, of what is counted.
        serial: grows with each change of ranks, which makes its scheduled end void.
    """

    number: int
    group: Group
    plan: Plan
    pace: float
    life_gpu_s: float
    done: float
    since_s: float
    counted_s: float
    num_ranks: int = 0
    unsaved_gpu_s: float = 0.0
    serial: int = 0
    has_ended: bool = False

    def left_s(self, num_ranks: int) -> float:
        """Return how long it still ran with so many ranks at the last change."""
        return (1 - self.done) * self.pace * run_s(self.plan, num_ranks)

    def done_at(self, now_s: float) -> float:
        """Return the share of the job that is done at a time."""
        if not self.num_ranks:
            return self.done
        return self.done + max(0.0, now_s - self.since_s) / (self.pace * run_s(self.plan, self.num_ranks))


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
        self._runs: dict[Group, Attempt] = {}
        self._num_waiting = 0
        self._swept_s = 0.0
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
            if at_s - self._swept_s >= RARE_SWEEP_S:
                self._sweep()
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
            claim = self._queue.claim(group)
            assert claim is not None  # every group can run every job of a trace
            self._num_waiting -= 1
            self._start(claim, group)

    def _start(self, claim: Claim, group: Group) -> None:
        self._give(self._begin(claim, group), group.num_ranks)

    def _begin(self, claim: Claim, group: Group) -> Attempt:
        """Begin an attempt, which has no ranks yet."""
        job, now_s = self._jobs[claim.number], self._clock.now_s
        if job.started_s is None:
            job.started_s = now_s
        run = self._runs[group] = Attempt(
            number=claim.number,
            group=group,
            plan=job.arrival.plan,
            pace=self._random.uniform(1 - SPREAD, 1 + SPREAD),
            life_gpu_s=self._random.expovariate(1 / self._mtbf_s) if self._mtbf_s else inf,
            done=claim.done,
            since_s=now_s,
            counted_s=now_s,
        )
        self._at(now_s + CHECKPOINT_S, partial(self._save, run))
        return run

    def _give(self, run: Attempt, num_ranks: int, pause_s: float = 0.0) -> None:
        """Let a job go on with so many ranks, after a pause in which it has them already."""
        now_s = self._clock.now_s
        self._count(run)
        run.done, run.since_s, run.num_ranks = run.done_at(now_s), now_s + pause_s, num_ranks
        run.serial += 1
        if num_ranks:
            duration_s, crash_s = pause_s + run.left_s(num_ranks), run.life_gpu_s / num_ranks
            event = self._crash if crash_s < duration_s else self._end
            self._at(now_s + min(duration_s, crash_s), partial(self._unless_changed, run, run.serial, event))

    def _count(self, run: Attempt) -> None:
        """Count the GPU time of a job since that was done last."""
        job, gpu_s = self._jobs[run.number], (self._clock.now_s - run.counted_s) * run.num_ranks
        job.served.append((run.counted_s, job.gpu_s))
        job.gpu_s += gpu_s
        job.served.append((self._clock.now_s, job.gpu_s))
        run.unsaved_gpu_s += gpu_s
        run.life_gpu_s -= gpu_s
        run.counted_s = self._clock.now_s

    def _unless_changed(self, run: Attempt, serial: int, event: Callable[[Attempt], None]) -> None:
        if run.serial == serial and not run.has_ended:
            event(run)

    def _save(self, run: Attempt) -> None:
        if not run.has_ended:
            now_s = self._clock.now_s
            self._count(run)
            run.unsaved_gpu_s = 0.0
            self._queue.save_checkpoint(run.number, run.done_at(now_s))
            self._at(now_s + CHECKPOINT_S, partial(self._save, run))

    def _end(self, run: Attempt) -> None:
        self._stop(run)
        self._queue.succeed(run.number)
        self._fleet.release(run.group)
        self._finish(run.number)

    def _crash(self, run: Attempt) -> None:
        self._abandon(run)
        self._at(self._clock.now_s + RESTART_S, partial(self._fleet.release, run.group))

    def _abandon(self, run: Attempt) -> None:
        """Leave the job of a group that has died to the end of its lease."""
        now_s, job = self._clock.now_s, self._jobs[run.number]
        self._stop(run)
        job.lost_gpu_s += run.unsaved_gpu_s
        job.num_crashes += 1
        self._queue.stop_renewing(run.number)
        self._at(ceil((now_s + LEASE_S) / SWEEP_S) * SWEEP_S, self._sweep)

    def _drain(self, run: Attempt) -> None:
        """Save and requeue the job of a group that is stopped."""
        self._stop(run)
        self._queue.save_checkpoint(run.number, run.done_at(self._clock.now_s))
        self._queue.requeue(run.number)
        self._num_waiting += 1

    def _stop(self, run: Attempt) -> None:
        self._count(run)
        run.has_ended = True
        del self._runs[run.group]

    def _sweep(self) -> None:
        self._swept_s = self._clock.now_s
        swept = self._queue.sweep()
        self._num_waiting += len(swept.requeued)
        for number in swept.failed:
            self._finish(number, failed=True)

    def _finish(self, number: int, *, failed: bool = False) -> None:
        job = self._jobs.pop(number)
        assert job.started_s is not None
        self._outcomes.append(
            Outcome(
                arrival=job.arrival,
                started_s=job.started_s,
                ended_s=self._clock.now_s,
                gpu_s=job.gpu_s,
                served=job.served,
                lost_gpu_s=job.lost_gpu_s,
                predicted_s=job.predicted_s,
                num_crashes=job.num_crashes,
                failed=failed,
            )
        )
