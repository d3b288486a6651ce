"""Compare ways to share GPUs on the same traces, and write `benchmarks/simulation.md`.

With `--day`, compare fixed and autoscaled fleets, and write `benchmarks/simulation/day.md`.
With `--trace FILE`, run only the service's queue on that trace and print its summary. `--write-trace FILE`
writes the trace of a seed and a load instead.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.machine import Machine
from benchmarks.simulation import day
from benchmarks.simulation.fleets import ElasticGroups, FixedGroups, Fleet
from benchmarks.simulation.queues import Clock, PlainQueue, Queue, StoreQueue, by_arrival, by_deadline
from benchmarks.simulation.report import Summary, percent, summarise, table, unfairness
from benchmarks.simulation.simulator import Outcome, Simulation
from benchmarks.simulation.trace import MIX, Arrival, mean_gpu_s, poisson_trace, read_trace, write_trace
from jobs.connect import connect
from stack.redis_server import RedisServer, find_redis

PAGE = Path(__file__).parents[1] / "simulation.md"
NUM_GPUS = 8
LOADS = (0.70, 0.85, 0.95)
WEIGHTS = {"studio": 2.0, "shop": 1.0, "trial": 0.5}
MTBF_S = 6 * 3600.0


@dataclass(frozen=True)
class Policy:
    """A way to share GPUs: how the next job is chosen, and which groups the GPUs form."""

    queue: str
    groups: str
    open_queue: Callable[[Redis, Clock], Queue]
    make_fleet: Callable[[], Fleet]


def first_come(redis: Redis, clock: Clock) -> Queue:
    """Open a plain queue by arrival."""
    return PlainQueue(clock, by_arrival)


def strict_deadlines(redis: Redis, clock: Clock) -> Queue:
    """Open a plain queue by deadline, in which late jobs come first."""
    return PlainQueue(clock, by_deadline)


def store_without_deadlines(redis: Redis, clock: Clock) -> Queue:
    """Open the service's queue for jobs without deadlines."""
    return StoreQueue(redis, clock, with_deadlines=False)


def fixed(num_ranks: int) -> Callable[[], Fleet]:
    """Return a function that makes groups of this size of all GPUs."""
    return lambda: FixedGroups(NUM_GPUS // num_ranks, num_ranks)


def elastic() -> Fleet:
    """Return groups that are formed for each job."""
    return ElasticGroups(NUM_GPUS)


POLICIES = (
    Policy("first come, first served", "1 of 8", first_come, fixed(8)),
    Policy("first come, first served", "8 of 1", first_come, fixed(1)),
    Policy("always the earliest deadline", "8 of 1", strict_deadlines, fixed(1)),
    Policy("**this service**, requests without deadlines", "8 of 1", store_without_deadlines, fixed(1)),
    Policy("**this service**", "8 of 1", StoreQueue, fixed(1)),
    Policy("**this service**", "4 of 2", StoreQueue, fixed(2)),
    Policy("**this service**", "2 of 4", StoreQueue, fixed(4)),
    Policy("**this service**", "1 of 8", StoreQueue, fixed(8)),
    Policy("this service's queue", "elastic (a model)", StoreQueue, elastic),
)


@contextmanager
def private_redis(folder: Path) -> Iterator[Redis]:
    """Start a Redis that keeps nothing on the disk, and yield a connection to it."""
    with RedisServer(folder, find_redis()) as server, connect(server.url) as redis:
        redis.config_set("appendonly", "no")
        yield redis


def trace_at(load: float, seed: int, num_jobs: int, num_gpus: int = NUM_GPUS) -> list[Arrival]:
    """Return a trace of one owner that takes this share of the GPUs' time."""
    return poisson_trace(seed, num_jobs, mean_gpu_s() / (num_gpus * load), {"": 1.0})


def simulate(
    redis: Redis, policy: Policy, trace: Sequence[Arrival], *, mtbf_s: float | None = None, seed: int = 0
) -> list[Outcome]:
    """Run a trace in an empty Redis."""
    redis.flushall()
    clock, fleet = Clock(), policy.make_fleet()
    redis.sadd("longcat:groups", *range(fleet.num_groups))  # predictions divide the work by their number
    return Simulation(policy.open_queue(redis, clock), fleet, clock, mtbf_s=mtbf_s, seed=seed).run(trace)


def compare_policies(redis: Redis, seed: int, num_jobs: int) -> str:
    """Return the table of policies and loads, and the details of one of them."""
    traces = {load: trace_at(load, seed, num_jobs) for load in LOADS}
    rows, details = [], ""
    for policy in POLICIES:
        summaries = [summarise(simulate(redis, policy, trace), NUM_GPUS) for trace in traces.values()]
        rows.append([policy.queue, policy.groups, *(percent(each.deadlines_met) for each in summaries)])
        print(*rows[-1], sep=" | ", flush=True)
        if policy.open_queue is StoreQueue and policy.groups == "8 of 1":
            details = _details(dict(zip(LOADS, summaries, strict=True)))
    header = ["queue", "groups", *(f"load {load:.2f}" for load in LOADS)]
    return f"{table(header, rows)}\n\n{details}"


def _details(summaries: Mapping[float, Summary]) -> str:
    rows = [
        [
            f"{load:.2f}",
            kind.name,
            percent(summary.by_kind[kind.name][0]),
            *(f"{seconds:.0f} s" for seconds in summary.by_kind[kind.name][1:]),
            f"{kind.deadline_s:.0f} s",
        ]
        for load, summary in summaries.items()
        for kind in MIX
    ]
    errors = ", ".join(f"{percent(summary.prediction_error or 0)}" for summary in summaries.values())
    return (
        "Response times of this service with 8 groups of one GPU:\n\n"
        + table(["load", "kind", "deadlines met", "median", "99 %", "deadline"], rows)
        + f"\n\nThe end that was predicted at submission was off by {errors} of the response time (medians)."
    )


def check_fairness(redis: Redis, seed: int, num_jobs: int) -> float:
    """Return how far the service of owners who always have queued jobs was from their weights, at worst."""
    trace: list[Arrival] = []
    for owner in WEIGHTS:
        trace += [
            arrival.model_copy(update={"at_s": 0.0, "owner": owner, "deadline_s": None})
            for arrival in poisson_trace(seed, num_jobs, 1.0, {owner: 1.0})
        ]
    policy = Policy("", "", lambda redis, clock: StoreQueue(redis, clock, WEIGHTS), fixed(1))
    outcomes = sorted(simulate(redis, policy, trace), key=lambda outcome: outcome.started_s)
    last = {owner: max(o.started_s for o in outcomes if o.arrival.owner == owner) for owner in WEIGHTS}
    return unfairness([o for o in outcomes if o.started_s < min(last.values())], WEIGHTS)


@dataclass(frozen=True)
class LargeRun:
    """A run of many groups that crash: what came of it, and its cost in wall time and scripts."""

    outcomes: Sequence[Outcome]
    summary: Summary
    wall_s: float
    scripts_per_job: float

    @property
    def num_crashes(self) -> int:
        """Return how many attempts ended by a crash."""
        return sum(outcome.num_crashes for outcome in self.outcomes)

    @property
    def num_failed(self) -> int:
        """Return how many jobs crashed in every attempt that they had."""
        return sum(outcome.failed for outcome in self.outcomes)

    @property
    def lost_s(self) -> float:
        """Return the mean GPU time that a crash lost."""
        return sum(outcome.lost_gpu_s for outcome in self.outcomes) / max(1, self.num_crashes)


def run_large(redis: Redis, seed: int, num_gpus: int, num_jobs: int) -> LargeRun:
    """Run many groups that crash."""
    policy = Policy("", "", StoreQueue, lambda: FixedGroups(num_gpus, 1))
    trace = trace_at(0.85, seed, num_jobs, num_gpus)
    redis.config_resetstat()
    started_at = time.monotonic()
    outcomes = simulate(redis, policy, trace, mtbf_s=MTBF_S, seed=seed)
    wall_s = time.monotonic() - started_at
    assert len(outcomes) == num_jobs
    stats: Any = redis.info("commandstats")
    calls = sum(stat["calls"] for name, stat in stats.items() if name.startswith("cmdstat_eval"))
    return LargeRun(outcomes, summarise(outcomes, num_gpus), wall_s, calls / num_jobs)


_PAGE = """\
# Simulation of the scheduler

Written by `make simulate` (`python -m benchmarks.simulation`). The queue is the real job store, with its
scripts in a real Redis; the clock, the run times and the GPUs are simulated. Run times are arithmetic from
others' numbers (`benchmarks/simulation/times.py`), so compare the rows; the seconds are not measured.

{num_jobs:,} jobs of one owner arrive at random (Poisson, seed {seed}) for 8 GPUs: half distilled clips,
wanted within 120 s; a fifth with 50 steps, 600 s; a fifth distilled and refined, 240 s; a tenth of ten
distilled segments, 1,500 s. The load is the share of the GPUs' time that the jobs take on groups of one GPU.
Share of the deadlines that were met:

{policies}

## What it shows

{conclusions}

## Fairness

Three owners with weights 2, 1 and 0.5, each with {num_fair:,} queued jobs of the same mix: in every window
of 90 jobs, the GPU time of each was within {fairness} of its share.

## A large fleet with crashes

{large_gpus} groups of one GPU, each of which dies after {mtbf:.0f} hours of work on average and needs three
minutes to return, and {large_jobs:,} jobs at a load of 0.85: all ended, after {crashes:,} crashes, and {met}
of the deadlines were met. A group that dies stops renewing its lease. When the lease has run out, the sweep
of the job store finds the job, which uses up an attempt, and the next group goes on from the checkpoint that
was saved last. A crash lost {lost:.0f} s of work on average, and {failed} jobs failed because they had
crashed in all three attempts. The simulation took {wall:.0f} s, and {scripts:.1f} scripts for each job.

{at}, commit {commit}; {cpu}, {cores} cores, load {load} before the run; Python {python}.
"""

_CONCLUSIONS = Path(__file__).with_name("conclusions.md")


def write_page(redis: Redis, seed: int, num_jobs: int, num_large: int) -> None:
    """Run everything and write the page."""
    machine = Machine.here()
    policies = compare_policies(redis, seed, num_jobs)
    num_fair = num_jobs // 8
    fairness = check_fairness(redis, seed, num_fair)
    print("unfairness", fairness, flush=True)
    large = run_large(redis, seed, 200, num_large)
    PAGE.write_text(
        _PAGE.format(
            num_jobs=num_jobs,
            seed=seed,
            policies=policies,
            conclusions=_CONCLUSIONS.read_text().strip(),
            num_fair=num_fair,
            fairness=percent(fairness),
            large_gpus=200,
            large_jobs=num_large,
            mtbf=MTBF_S / 3600,
            crashes=large.num_crashes,
            met=percent(large.summary.deadlines_met),
            lost=large.lost_s,
            failed=large.num_failed or "no",
            wall=large.wall_s,
            scripts=large.scripts_per_job,
            at=machine.at,
            commit=machine.commit,
            cpu=machine.cpu,
            cores=machine.cores,
            load=machine.load,
            python=machine.python,
        )
    )


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--large", type=int, default=10_000, help="jobs of the large fleet")
    parser.add_argument("--load", type=float, default=0.85, help="of the trace that is written")
    parser.add_argument("--day", action="store_true", help="compare autoscaled fleets: simulation/day.md")
    parser.add_argument("--peak", type=int, default=200, help="GPUs that compute at the peak of the day")
    parser.add_argument("--small-peak", type=int, default=8, help="the same, with the job store")
    parser.add_argument("--trace", type=Path, metavar="FILE")
    parser.add_argument("--gpus", type=int, default=NUM_GPUS, help="groups of one GPU, with --trace")
    parser.add_argument("--write-trace", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.write_trace:
        write_trace(options.write_trace, trace_at(options.load, options.seed, options.jobs, options.gpus))
        return
    with tempfile.TemporaryDirectory(prefix="longcat-") as folder, private_redis(Path(folder)) as redis:
        if options.trace:
            policy = Policy("", "", StoreQueue, lambda: FixedGroups(options.gpus, 1))
            print(summarise(simulate(redis, policy, read_trace(options.trace)), options.gpus))
        elif options.day:
            day.write_page(redis, options.seed, options.peak, options.small_peak)
        else:
            write_page(redis, options.seed, options.jobs, options.large)


if __name__ == "__main__":
    main()
