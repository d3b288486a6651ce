"""Compare ways to share GPUs on the same traces, and write `benchmarks/simulation.md`.

With `--day`, compare fixed and autoscaled fleets, and write `benchmarks/simulation/day.md`.
With `--trace FILE`, run only the service's queue on that trace and print its summary; with both, compare the
fleets on that trace and print the table. `--write-trace FILE` writes the trace of a seed and a load instead.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.machine import Machine
from benchmarks.simulation import day
from benchmarks.simulation.elastic import ElasticFleet, ElasticSimulation
from benchmarks.simulation.fairness import LENGTHS_IN_WINDOW, Fairness, fairness
from benchmarks.simulation.fleets import FixedGroups, Fleet
from benchmarks.simulation.queues import Clock, PlainQueue, Queue, StoreQueue, by_arrival, by_deadline
from benchmarks.simulation.report import Summary, percent, summarise, table
from benchmarks.simulation.simulator import Outcome, Simulation
from benchmarks.simulation.trace import MIX, Arrival, mean_gpu_s, poisson_trace, read_trace, write_trace
from jobs.connect import connect
from stack.redis_server import RedisServer, find_redis

PAGE = Path(__file__).parents[1] / "simulation.md"
NUM_GPUS = 8
LOADS = (0.70, 0.85, 0.95)
WEIGHTS = {"studio": 2.0, "shop": 1.0, "trial": 0.5}
MTBF_S = 6 * 3600.0
HIGH_LOADS = (0.85, 0.95)
NUM_SEEDS = 3


@dataclass(frozen=True)
class Policy:
    """A way to share GPUs: how the next job is chosen, and which groups the GPUs form."""

    queue: str
    groups: str
    open_queue: Callable[[Redis, Clock], Queue]
    make_fleet: Callable[[], Fleet | ElasticFleet]


def first_come(redis: Redis, clock: Clock) -> Queue:
    """Open a plain queue by arrival."""
    return PlainQueue(clock, by_arrival)


def strict_deadlines(redis: Redis, clock: Clock) -> Queue:
    """Open a plain queue by deadline, in which late jobs come first."""
    return PlainQueue(clock, by_deadline)


def fixed(num_ranks: int) -> Callable[[], Fleet]:
    """Return a function that makes groups of this size of all GPUs."""
    return partial(FixedGroups, NUM_GPUS // num_ranks, num_ranks)


def elastic() -> ElasticFleet:
    """Make one worker of all GPUs, which divides them among its jobs."""
    return ElasticFleet(1, NUM_GPUS)


POLICIES = (
    Policy("first come, first served", "1 of 8", first_come, fixed(8)),
    Policy("first come, first served", "8 of 1", first_come, fixed(1)),
    Policy("always the earliest deadline", "8 of 1", strict_deadlines, fixed(1)),
    Policy("**this service**", "8 of 1", StoreQueue, fixed(1)),
    Policy("**this service**", "4 of 2", StoreQueue, fixed(2)),
    Policy("**this service**", "2 of 4", StoreQueue, fixed(4)),
    Policy("**this service**", "1 of 8", StoreQueue, fixed(8)),
    Policy("**this service**", "elastic", StoreQueue, elastic),
)
FIXED_1, FIXED_2, FIXED_8, ELASTIC = 3, 4, 6, 7
COMPARED, DETAILED = (FIXED_1, FIXED_2, ELASTIC), (FIXED_1, ELASTIC)
"""Which of `POLICIES` run with all seeds, and of which the page has response times."""
CHECKED_FOR_FAIRNESS = (FIXED_1, FIXED_8, ELASTIC)


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
    queue = policy.open_queue(redis, clock)
    if isinstance(fleet, ElasticFleet):
        return ElasticSimulation(queue, fleet, clock, mtbf_s=mtbf_s, seed=seed).run(trace)
    return Simulation(queue, fleet, clock, mtbf_s=mtbf_s, seed=seed).run(trace)


@dataclass(frozen=True)
class Case:
    """A policy, by its place in `POLICIES`, and the trace to run it on."""

    policy: int
    load: float
    seed: int
    num_jobs: int
    mtbf_s: float | None = None


def run_case(case: Case) -> Summary:
    """Run a case with a Redis of its own."""
    trace = trace_at(case.load, case.seed, case.num_jobs)
    with tempfile.TemporaryDirectory(prefix="longcat-") as folder, private_redis(Path(folder)) as redis:
        outcomes = simulate(redis, POLICIES[case.policy], trace, mtbf_s=case.mtbf_s, seed=case.seed)
    assert len(outcomes) == case.num_jobs
    summary = summarise(outcomes, NUM_GPUS)
    print(case, percent(summary.deadlines_met), flush=True)
    return summary


def policies_table(summaries: Mapping[Case, Summary], seed: int, num_jobs: int) -> str:
    """Return the table of policies and loads."""
    rows = [
        [
            policy.queue,
            policy.groups,
            *(percent(summaries[Case(number, load, seed, num_jobs)].deadlines_met) for load in LOADS),
        ]
        for number, policy in enumerate(POLICIES)
    ]
    return table(["queue", "groups", *(f"load {load:.2f}" for load in LOADS)], rows)


def seeds_table(summaries: Mapping[Case, Summary], seeds: Sequence[int], num_jobs: int) -> str:
    """Return the table of seeds, for the policies that are compared on all of them."""
    rows = [
        [
            f"{load:.2f}",
            str(seed),
            *(percent(summaries[Case(number, load, seed, num_jobs)].deadlines_met) for number in COMPARED),
        ]
        for load in HIGH_LOADS
        for seed in seeds
    ]
    return table(["load", "seed", *(POLICIES[number].groups for number in COMPARED)], rows)


def details_table(summaries: Mapping[Case, Summary], seed: int, num_jobs: int) -> str:
    """Return the response times of each kind of job with groups of one and with elastic ones."""
    rows = []
    for load in LOADS:
        for kind in MIX:
            row = [f"{load:.2f}", kind.name, f"{kind.deadline_s:.0f} s"]
            for number in DETAILED:
                met, *times_s = summaries[Case(number, load, seed, num_jobs)].by_kind[kind.name]
                row += [percent(met), *(f"{seconds:.0f} s" for seconds in times_s)]
            rows.append(row)
    columns = [
        f"{POLICIES[number].groups}: {column}" for number in DETAILED for column in ("met", "median", "99 %")
    ]
    return table(["load", "kind", "deadline", *columns], rows)


def totals_table(summaries: Mapping[Case, Summary], seed: int, num_jobs: int) -> str:
    """Return the utilisation, the longest response and the error of predictions, as in `details_table`."""
    rows = []
    for load in LOADS:
        for number in DETAILED:
            summary = summaries[Case(number, load, seed, num_jobs)]
            rows.append(
                [
                    f"{load:.2f}",
                    POLICIES[number].groups,
                    percent(summary.utilisation),
                    f"{summary.longest_s:.0f} s",
                    percent(summary.prediction_error or 0),
                ]
            )
    return table(["load", "groups", "utilisation", "longest response", "error of the prediction"], rows)


def check_fairness(policy: int, seed: int, num_jobs: int) -> Fairness:
    """Return how far the service of owners who always have queued jobs was from their weights, at worst.

    Args:
        policy: the place in `POLICIES` of the groups.
        seed: of the traces.
        num_jobs: jobs of each owner.
    """
    trace: list[Arrival] = []
    for owner in WEIGHTS:
        trace += [
            arrival.model_copy(update={"at_s": 0.0, "owner": owner, "deadline_s": None})
            for arrival in poisson_trace(seed, num_jobs, 1.0, {owner: 1.0})
        ]
    fair = replace(POLICIES[policy], open_queue=lambda redis, clock: StoreQueue(redis, clock, WEIGHTS))
    with tempfile.TemporaryDirectory(prefix="longcat-") as folder, private_redis(Path(folder)) as redis:
        outcomes = simulate(redis, fair, trace)
    last = {owner: max(o.started_s for o in outcomes if o.arrival.owner == owner) for owner in WEIGHTS}
    return fairness([o for o in outcomes if o.started_s < min(last.values())], WEIGHTS)


def fairness_table(found: Mapping[int, Fairness]) -> str:
    """Return how fair the groups of these policies are."""
    rows = [
        [
            POLICIES[number].groups,
            percent(each.in_mean_windows),
            percent(each.in_longest_windows),
            f"{each.furthest:.2f} longest jobs",
        ]
        for number, each in found.items()
    ]
    first = next(iter(found.values()))
    windows = [
        f"30 {name} lengths, {LENGTHS_IN_WINDOW * length_s:,.0f} s"
        for name, length_s in (("mean", first.mean_s), ("longest", first.longest_s))
    ]
    return table(["groups", *windows, "any number of started jobs"], rows)


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


def run_large(seed: int, num_gpus: int, num_jobs: int) -> LargeRun:
    """Run many groups that crash."""
    policy = Policy("", "", StoreQueue, lambda: FixedGroups(num_gpus, 1))
    trace = trace_at(0.85, seed, num_jobs, num_gpus)
    with tempfile.TemporaryDirectory(prefix="longcat-") as folder, private_redis(Path(folder)) as redis:
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
*Elastic* is one worker with `CONTEXT_PARALLEL=auto`, whose ranks change between jobs
(`worker/supervisor/allocation.py`): a change waits for the end of a step and costs a second. It has two
slots for each rank, and claims a job whenever one is free; a job in hand may have to wait for ranks. Share of
the deadlines that were met:

{policies}

The same with other seeds:

{seeds}

Response times of this service, seed {seed}:

{details}

{totals}

## What it shows

{conclusions}

## Fairness

Three owners with weights 2, 1 and 0.5, each with {num_fair:,} queued jobs of the same mix. The GPU time that
each was served in a window is compared with its share of what all were served. The table has the greatest
difference over all windows, as a part of the share; the length of a job is its time on one GPU. In the last
column a job counts with all its GPU time when it starts, and the difference is not divided by the share:

{fair}

## Crashes

At a load of 0.85, if a group dies after {mtbf:.0f} hours of a GPU's work on average and needs three minutes
to return: 8 groups of one GPU meet {crashing_fixed} of the deadlines, and an elastic worker, of which all
ranks die together, {crashing_elastic}. Its other jobs go on from their checkpoints, which is no attempt of
theirs.

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


def write_page(seed: int, num_jobs: int, num_large: int, num_processes: int) -> None:
    """Run everything, in several processes, and write the page."""
    machine = Machine.here()
    seeds = range(seed, seed + NUM_SEEDS)
    cases = [Case(number, load, seed, num_jobs) for number in range(len(POLICIES)) for load in LOADS]
    cases += [
        Case(number, load, each, num_jobs) for number in COMPARED for load in HIGH_LOADS for each in seeds[1:]
    ]
    crashing = [Case(number, 0.85, seed, num_jobs, MTBF_S) for number in DETAILED]
    with ProcessPoolExecutor(num_processes) as pool:
        large_run = pool.submit(run_large, seed, 200, num_large)
        results = pool.map(run_case, [*cases, *crashing])
        fairness_runs = [
            pool.submit(check_fairness, number, seed, num_jobs) for number in CHECKED_FOR_FAIRNESS
        ]
        summaries = dict(zip([*cases, *crashing], results, strict=True))
        fair = {
            number: each.result() for number, each in zip(CHECKED_FOR_FAIRNESS, fairness_runs, strict=True)
        }
        large = large_run.result()
    PAGE.write_text(
        _PAGE.format(
            num_jobs=num_jobs,
            seed=seed,
            policies=policies_table(summaries, seed, num_jobs),
            seeds=seeds_table(summaries, seeds, num_jobs),
            details=details_table(summaries, seed, num_jobs),
            totals=totals_table(summaries, seed, num_jobs),
            conclusions=_CONCLUSIONS.read_text().strip(),
            num_fair=num_jobs,
            fair=fairness_table(fair),
            crashing_fixed=percent(summaries[crashing[0]].deadlines_met),
            crashing_elastic=percent(summaries[crashing[1]].deadlines_met),
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
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--large", type=int, default=4000, help="jobs of the large fleet")
    parser.add_argument("--load", type=float, default=0.85, help="of the trace that is written")
    parser.add_argument("--day", action="store_true", help="compare autoscaled fleets: simulation/day.md")
    parser.add_argument("--peak", type=int, default=200, help="GPUs that compute at the peak of the day")
    parser.add_argument("--small-peak", type=int, default=8, help="the same, with the job store")
    parser.add_argument("--trace", type=Path, metavar="FILE")
    parser.add_argument("--gpus", type=int, default=NUM_GPUS, help="groups of one GPU, with --trace")
    parser.add_argument("--write-trace", type=Path, metavar="FILE")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that run at a time")
    options = parser.parse_args()
    if options.gpus < 1:
        parser.error("--gpus: must be at least 1")
    trace: Sequence[Arrival] = ()
    if options.trace:
        try:
            trace = read_trace(options.trace)
        except (OSError, ValueError) as error:
            parser.error(f"--trace: {error}")
    if options.write_trace:
        write_trace(options.write_trace, trace_at(options.load, options.seed, options.jobs, options.gpus))
        return
    if options.trace and options.day:
        print(day.compare_on(trace, options.seed))
        return
    if not options.trace and not options.day:
        write_page(options.seed, options.jobs, options.large, options.processes)
        return
    with tempfile.TemporaryDirectory(prefix="longcat-") as folder, private_redis(Path(folder)) as redis:
        if options.trace:
            policy = Policy("", "", StoreQueue, lambda: FixedGroups(options.gpus, 1))
            print(summarise(simulate(redis, policy, trace), options.gpus))
        else:
            day.write_page(redis, options.seed, options.peak, options.small_peak)


if __name__ == "__main__":
    main()
