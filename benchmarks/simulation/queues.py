"""Decide which job is next: the real job store, and a plain queue to compare it with."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, get_args

from redis import Redis

from benchmarks.simulation.fleets import Group
from benchmarks.simulation.times import run_s
from benchmarks.simulation.trace import LIMITS, Arrival
from jobs.capability import Capability
from jobs.order import Order
from jobs.record import Result
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.queue_depths import queue_depths, recent_runs
from jobs.store.submission import Submission
from model.spec.params import Task

LEASE_S = 30.0
"""How long a job whose group has died stays with it. A group renews its lease twice a second."""

UNINTERRUPTED_S = 30 * 86400.0
"""The lease of a group that is up, instead of all its renewals."""

RETENTION_S = 60.0
START_MS = 1_700_000_000_000


@dataclass
class Clock:
    """The simulated time in seconds."""

    now_s: float = 0.0

    def __call__(self) -> int:
        """Return milliseconds since 1970, as the job store takes them."""
        return START_MS + round(self.now_s * 1000)


@cache
def capability_of(num_ranks: int) -> Capability:
    """Return the capability of a group with the released checkpoint."""
    return Capability(
        model="LongCat-Video",
        tasks=get_args(Task),
        loras=("cfg_step_lora", "refinement_lora"),
        limits=LIMITS.to_json(),
        context_parallel=num_ranks,
        device="cuda",
        dtype="bfloat16",
    )


RESULT = Result(
    video_key="video",
    thumbnail_key="thumbnail",
    width=832,
    height=480,
    num_frames=93,
    fps=15,
    duration_s=6.2,
    size_bytes=1,
    sha256="",
    seed=0,
)


@dataclass(frozen=True)
class Claim:
    """A job to run, and the share of it that its last checkpoint contains."""

    number: int
    done: float


@dataclass(frozen=True)
class Swept:
    """What became of jobs whose lease ran out: queued again, or failed because no attempt is left."""

    requeued: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()


class Queue(Protocol):
    """Jobs that wait. A job is known by its number in the trace."""

    def submit(self, number: int, arrival: Arrival) -> float | None:
        """Add a job. Return in how many seconds it is expected to end, None if that is not known."""
        ...

    def claim(self, group: Group) -> Claim | None:
        """Take the next job for a group, None if there is none."""
        ...

    def report_gpus(self, number: int, num_gpus: int) -> None:
        """Count the GPU time of a job with this number of GPUs from now on; 0 while it waits for some."""
        ...

    def save_checkpoint(self, number: int, done: float) -> None:
        """Save a checkpoint that contains this share of the job."""
        ...

    def succeed(self, number: int) -> None:
        """End a job that a group has run."""
        ...

    def stop_renewing(self, number: int) -> None:
        """Note that the group of a job has died. Its lease runs out `LEASE_S` after the last renewal."""
        ...

    def requeue(self, number: int) -> None:
        """Return a job to its place whose group was drained."""
        ...

    def sweep(self) -> Swept:
        """Find the jobs whose lease ran out."""
        ...

    def backlog(self) -> tuple[int, float]:
        """Return how many queued jobs may start, and the GPU time that they are expected to take."""
        ...


class StoreQueue:
    """The job store of the service, used as the service and its workers do.

    Args:
        weights: of owners; 1 for others.
        with_deadlines: whether jobs are submitted with the deadlines of the trace.
    """

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        weights: Mapping[str, float] | None = None,
        *,
        with_deadlines: bool = True,
    ) -> None:
        self._redis, self._clock = redis, clock
        self._store = JobStore(redis, clock=clock, retention_s=RETENTION_S)
        self._weights = weights or {}
        self._with_deadlines = with_deadlines
        self._leases: dict[int, Lease] = {}

    def submit(self, number: int, arrival: Arrival) -> float | None:
        """Predict the end of a job, and submit it, as `service.jobs.submission` does."""
        order = Order(plan=arrival.plan, prompts=("a red ball",), seed=number)
        wanted = Submission(
            id=str(number),
            order=order,
            owner=arrival.owner,
            weight=self._weights.get(arrival.owner, 1.0),
            priority=arrival.priority,
            ageing_s=3600.0,
            deadline_s=arrival.deadline_s if self._with_deadlines else None,
        )
        prediction = self._store.client.predict(wanted)
        self._store.client.submit(replace(wanted, expected_run_s=prediction.run_s))
        return prediction.eta_s

    def claim(self, group: Group) -> Claim | None:
        """Claim the next job."""
        lease = self._store.holder.claim(group.name, UNINTERRUPTED_S, capability_of(group.num_ranks))
        if lease is None:
            return None
        number = int(lease.job.id)
        self._leases[number] = lease
        return Claim(number, float((lease.checkpoint or {}).get("done", 0.0)))

    def report_gpus(self, number: int, num_gpus: int) -> None:
        """Renew the lease, as a worker does when its ranks change."""
        self._store.holder.renew_lease(self._leases[number], num_gpus=num_gpus)

    def save_checkpoint(self, number: int, done: float) -> None:
        """Save a checkpoint, with the share in place of latents."""
        self._store.holder.save_checkpoint(self._leases[number], {"done": done})

    def succeed(self, number: int) -> None:
        """End the job."""
        self._store.holder.succeed(self._leases.pop(number), RESULT, {})

    def stop_renewing(self, number: int) -> None:
        """Renew the lease for the last time, now for as long as a worker does."""
        lease = self._leases.pop(number)
        self._store.holder.renew_lease(replace(lease, duration_s=LEASE_S))

    def requeue(self, number: int) -> None:
        """Give the job up, as a worker does that is drained."""
        self._store.holder.requeue(self._leases.pop(number), crashed=False)

    def sweep(self) -> Swept:
        """Sweep as the service does. That also removes records whose retention has ended."""
        result = self._store.maintenance.sweep()
        return Swept(tuple(map(int, result.requeued)), tuple(map(int, result.ended)))

    def backlog(self) -> tuple[int, float]:
        """Return what the metrics of a pool of groups of one GPU export."""
        depths, runs = queue_depths(self._redis, self._clock), recent_runs(self._redis)
        return (
            sum(depth.num_startable for depth in depths),
            sum(depth.expected_run_s(runs) for depth in depths),
        )


class PlainQueue:
    """A queue in memory with one order, whoever the owner is. Jobs have any number of attempts.

    Args:
        clock: the simulated time.
        key: the place of a job.
        late_key: its place once the time of the first has passed; None if it keeps its place.
    """

    def __init__(
        self,
        clock: Clock,
        key: Callable[[Arrival], float],
        late_key: Callable[[Arrival], float] | None = None,
    ) -> None:
        self._clock = clock
        self._key = key
        self._late_key = late_key
        self._heap: list[tuple[float, int]] = []
        self._arrivals: dict[int, Arrival] = {}
        self._done: dict[int, float] = {}
        self._backlog_s = 0.0
        self._lease_ends_s: dict[int, float] = {}

    def submit(self, number: int, arrival: Arrival) -> float | None:
        """Add a job."""
        self._arrivals[number] = arrival
        self.requeue(number)
        return None

    def claim(self, group: Group) -> Claim | None:
        """Take the job with the lowest key."""
        while self._heap:
            at, number = heapq.heappop(self._heap)
            arrival = self._arrivals[number]
            if self._late_key and at < self._clock.now_s and at < (late := self._late_key(arrival)):
                heapq.heappush(self._heap, (late, number))
            else:
                self._backlog_s -= run_s(arrival.plan, 1)
                return Claim(number, self._done.get(number, 0.0))
        return None

    def report_gpus(self, number: int, num_gpus: int) -> None:
        """Count nothing."""

    def save_checkpoint(self, number: int, done: float) -> None:
        """Keep the share."""
        self._done[number] = done

    def succeed(self, number: int) -> None:
        """Forget a job."""
        del self._arrivals[number]
        self._done.pop(number, None)

    def stop_renewing(self, number: int) -> None:
        """Let the lease of a job run out."""
        self._lease_ends_s[number] = self._clock.now_s + LEASE_S

    def sweep(self) -> Swept:
        """Return jobs to their places whose lease ran out."""
        requeued = tuple(each for each, ends_s in self._lease_ends_s.items() if ends_s <= self._clock.now_s)
        for number in requeued:
            del self._lease_ends_s[number]
            self.requeue(number)
        return Swept(requeued)

    def requeue(self, number: int) -> None:
        """Return a job to its place."""
        arrival = self._arrivals[number]
        self._backlog_s += run_s(arrival.plan, 1)
        heapq.heappush(self._heap, (self._key(arrival), number))

    def backlog(self) -> tuple[int, float]:
        """Return the exact size of the queue, as if all its jobs were new."""
        return len(self._heap), self._backlog_s


def by_arrival(arrival: Arrival) -> float:
    """Order jobs as they arrive."""
    return arrival.at_s


def by_deadline(arrival: Arrival) -> float:
    """Order jobs by the time at which they have to start on one GPU, also if that has passed."""
    return arrival.at_s + (arrival.deadline_s or 3600.0) - run_s(arrival.plan, 1)


def by_default_deadline(arrival: Arrival) -> float:
    """Order jobs by the time at which they have to start if they are wanted within the default of an hour."""
    return arrival.at_s + 3600.0 - run_s(arrival.plan, 1)
