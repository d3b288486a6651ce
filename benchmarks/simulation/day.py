"""Compare fixed and autoscaled fleets over a day of traffic, and write `benchmarks/simulation/day.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

from redis import Redis

from benchmarks.machine import Machine
from benchmarks.simulation.autoscaling import GPU_S_PER_GPU, PodAutoscaler, Rule, largest, replicas_wanted
from benchmarks.simulation.cloud import Cloud, CloudSimulation, Sample
from benchmarks.simulation.queues import (
    Clock,
    PlainQueue,
    Queue,
    StoreQueue,
    by_deadline,
    by_default_deadline,
)
from benchmarks.simulation.report import Summary, percent, share, summarise, table
from benchmarks.simulation.simulator import Outcome
from benchmarks.simulation.times import run_s
from benchmarks.simulation.trace import DAY_S, MIX, Arrival, day_trace, mean_gpu_s

PAGE = Path(__file__).with_name("day.md")
PLOT = Path(__file__).with_name("day.svg")
CONCLUSIONS = Path(__file__).with_name("day_conclusions.md")
OWNERS = {"studio": 0.5, "shop": 0.3, "trial": 0.2}
SPOT = Cloud(lost_after_s=4 * 3600.0)
TARGETS = (1800.0, 600.0, 300.0)
FIXED_SHARES = (0.85, 0.9, 1.0, 1.1)
"""Sizes of fixed fleets, as shares of the GPUs that compute at the peak."""


@dataclass(frozen=True)
class Fleet:
    """A fleet of so many pods, or one that a rule scales."""

    name: str
    rule: Rule | None = None
    num_pods: int = 0

    def autoscaler(self) -> PodAutoscaler:
        """Return what keeps the number of pods."""
        if self.rule:
            return PodAutoscaler(self.rule)
        return PodAutoscaler(lambda demand: (self.num_pods,), min_pods=self.num_pods, max_pods=self.num_pods)


@dataclass(frozen=True)
class Day:
    """What came of a day.

    Attributes:
        gpu_hours: what is paid for: the time that all pods existed.
        utilisation: the share of it in which GPUs computed.
        owners_met: share of the deadlines that were met, of the owner with the lowest.
        num_drained: jobs that were saved and requeued.
        num_crashed: attempts that ended with their machine.
        num_from_zero: how often the first pod was started.
    """

    outcomes: Sequence[Outcome]
    summary: Summary
    samples: Sequence[Sample]
    gpu_hours: float
    utilisation: float
    owners_met: float
    num_drained: int
    num_crashed: int
    num_from_zero: int


def run_day(
    open_queue: Callable[[Clock], Queue], fleet: Fleet, trace: Sequence[Arrival], cloud: Cloud, seed: int
) -> Day:
    """Run a trace of a day on a fleet."""
    clock = Clock()
    simulation = CloudSimulation(
        open_queue(clock), clock, fleet.autoscaler(), cloud, num_pods=fleet.num_pods, seed=seed
    )
    outcomes = simulation.run(trace)
    assert len(outcomes) == len(trace)
    owners = {arrival.owner for arrival in trace}
    return Day(
        outcomes=outcomes,
        summary=summarise(outcomes, fleet.num_pods or 1),
        samples=simulation.samples,
        gpu_hours=simulation.gpu_s / 3600,
        utilisation=sum(outcome.gpu_s for outcome in outcomes) / simulation.gpu_s,
        owners_met=min(share(o for o in outcomes if o.arrival.owner == owner) for owner in owners),
        num_drained=simulation.num_drained,
        num_crashed=sum(outcome.num_crashes for outcome in outcomes),
        num_from_zero=simulation.num_from_zero,
    )


def trace_with_peak(num_gpus: float, seed: int) -> list[Arrival]:
    """Return a day in which so many GPUs compute at the peak."""
    return day_trace(seed, mean_gpu_s() / num_gpus, OWNERS)


def plain_queue(clock: Clock) -> Queue:
    """Open a queue in memory with the order of one owner in the service."""
    return PlainQueue(clock, by_deadline, by_default_deadline)


def store_queue(redis: Redis, clock: Clock) -> Queue:
    """Open an empty job store."""
    redis.flushall()
    return StoreQueue(redis, clock)


def fixed_fleets(peak: int) -> list[Fleet]:
    """Return fixed fleets around the GPUs of the peak."""
    sizes = sorted({max(1, round(peak * of)) for of in FIXED_SHARES})
    return [Fleet(f"fixed, {size} pods", None, size) for size in sizes]


def busiest_hour_gpus(trace: Sequence[Arrival]) -> int:
    """Return how many GPUs compute all the time what arrives in the busiest hour."""
    gpu_s = Counter[int]()
    for arrival in trace:
        gpu_s[int(arrival.at_s // 3600)] += ceil(run_s(arrival.plan, 1))
    return ceil(max(gpu_s.values()) / 3600)


def compare_on(trace: Sequence[Arrival], seed: int) -> str:
    """Return the table of fleets for any trace. Fixed ones have about the GPUs of its busiest hour."""
    fleets = [*fixed_fleets(busiest_hour_gpus(trace)), *scaled_fleets()]
    return compare(plain_queue, fleets, trace, seed)[0]


def scaled_fleets() -> list[Fleet]:
    """Return fleets with both rules and all targets."""
    rules = (
        ("largest of backlog / {}, busy", largest),
        ("**busy + backlog / {}**", replicas_wanted),
    )
    return [
        Fleet(name.format(f"{target:.0f}"), partial(rule, gpu_s_per_replica=target))
        for name, rule in rules
        for target in TARGETS
    ]


def compare(
    open_queue: Callable[[Clock], Queue], fleets: Iterable[Fleet], trace: Sequence[Arrival], seed: int
) -> tuple[str, dict[str, Day]]:
    """Return a table of fleets, and what came of each."""
    days = {}
    for fleet in fleets:
        days[fleet.name] = day = run_day(open_queue, fleet, trace, SPOT, seed)
        print(*_row(fleet.name, day), sep=" | ", flush=True)
    header = [
        "fleet",
        "deadlines met",
        "worst owner",
        "GPU-hours",
        "utilisation",
        "most pods",
        "drained",
        "crashed",
    ]
    return table(header, (_row(name, day) for name, day in days.items())), days


def _row(name: str, day: Day) -> list[str]:
    return [
        name,
        percent(day.summary.deadlines_met),
        percent(day.owners_met),
        f"{day.gpu_hours:,.0f}",
        percent(day.utilisation),
        str(max(sample.num_pods for sample in day.samples)),
        str(day.num_drained),
        str(day.num_crashed),
    ]


def response_times(days: dict[str, Day]) -> str:
    """Return a table of the response times of each kind of job."""
    rows = [
        [name, kind.name, percent(met), f"{median_s:.0f} s", f"{slow_s:.0f} s", f"{kind.deadline_s:.0f} s"]
        for name, day in days.items()
        for kind in MIX
        for met, median_s, slow_s in [day.summary.by_kind[kind.name]]
    ]
    return table(["fleet", "kind", "deadlines met", "median", "99 %", "deadline"], rows)


def plot(days: dict[str, Day]) -> str:
    """Return an SVG of the pods and the busy ones of each day over time, one below the other."""
    width, height, left, gap = 720, 150, 50, 50
    most = max(sample.num_pods for day in days.values() for sample in day.samples)
    end_s = max(DAY_S, *(day.samples[-1].at_s for day in days.values()))
    parts = []
    for number, (name, day) in enumerate(days.items()):
        top = gap * (number + 1) + height * number
        parts.append(f'<text x="{left}" y="{top - 10}">{name.replace("*", "")}</text>')
        for label, at in (("0", top + height), (str(most), top + 10)):
            parts.append(f'<text x="{left - 8}" y="{at}" text-anchor="end">{label}</text>')
        for hour in range(0, 25, 4):
            x = left + width * hour * 3600 / end_s
            parts.append(f'<text x="{x:.0f}" y="{top + height + 16}" text-anchor="middle">{hour}:00</text>')
        for field, colour in (("num_pods", "#d55e00"), ("num_busy", "#0072b2")):
            points = " ".join(
                f"{left + width * at.at_s / end_s:.1f},{top + height * (1 - getattr(at, field) / most):.1f}"
                for at in day.samples[::20]
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    total = gap + (height + gap) * len(days)
    frame = f'width="{width + 2 * left}" height="{total}" font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>', *parts, "</svg>\n"])


def write_page(redis: Redis, seed: int, peak: int, small_peak: int) -> None:
    """Run everything and write the page and its plot."""
    machine = Machine.here()
    large_trace, small_trace = trace_with_peak(peak, seed), trace_with_peak(small_peak, seed)
    rules, days = compare(plain_queue, [*fixed_fleets(peak), *scaled_fleets()], large_trace, seed)
    chosen = Fleet("**busy + backlog / 600**", replicas_wanted)
    earlier = Fleet("largest of backlog / 1800, busy", largest)
    steady = Fleet(f"fixed, {round(small_peak * 1.1)} pods", None, round(small_peak * 1.1))
    in_store, _ = compare(partial(store_queue, redis), [steady, earlier, chosen], small_trace, seed)
    shown = {fleet.name: days[fleet.name] for fleet in (earlier, chosen)}
    PLOT.write_text(plot(shown))
    trial_trace = day_trace(seed, 900.0, {"": 1.0}, lowest=0.0)
    trial = run_day(partial(store_queue, redis), chosen, trial_trace, Cloud(), seed)
    PAGE.write_text(
        _PAGE.format(
            seed=seed,
            num_jobs=len(large_trace),
            peak=peak,
            gpu_s=mean_gpu_s(),
            target=GPU_S_PER_GPU,
            rules=rules,
            conclusions=CONCLUSIONS.read_text().strip(),
            times=response_times(shown),
            small_jobs=len(small_trace),
            small_peak=small_peak,
            in_store=in_store,
            trial_jobs=len(trial_trace),
            trial_starts=trial.num_from_zero,
            trial_hours=trial.gpu_hours,
            trial_median=sorted(o.response_s for o in trial.outcomes)[len(trial.outcomes) // 2],
            trial_slowest=trial.summary.longest_s,
            trial_met=percent(trial.summary.deadlines_met),
            at=machine.at,
            commit=machine.commit,
            cpu=machine.cpu,
            cores=machine.cores,
            load=machine.load,
            python=machine.python,
        )
    )


_PAGE = """\
# A day of an autoscaled fleet

Written by `make simulate DAY=1` (`python -m benchmarks.simulation --day`), with the job mix, deadlines
and run times of [the other page](../simulation.md). The rates of arrival follow a cosine: at 16:00,
{peak} GPUs compute, at 4:00 a tenth of them. {num_jobs:,} jobs of three owners arrive at random (seed
{seed}); a mean job takes {gpu_s:.0f} GPU-seconds.

Pods have one GPU. A new one needs three to seven minutes until its first job, and is paid for from its
start. The cloud takes each machine back after four hours on average: four of five are announced early
enough to save and requeue the job (*drained*), the others vanish (*crashed*: the lease runs out, and the
job goes on from its last checkpoint). KEDA and the HorizontalPodAutoscaler are modelled with their
documented rules and the settings of the Helm chart (`benchmarks/simulation/autoscaling.py`). A scale-down
removes the pods with the highest numbers, busy or not.

## Rules

A rule says how many pods are wanted: the largest of the busy pods and the backlog in GPU-seconds divided
by a target, or their sum. At least one pod is wanted while a job is queued. To run so many jobs in little
time, the queue is one in memory, with the order in which the service starts the jobs of one owner.

{rules}

## What it shows

{conclusions}

![Pods (orange) and busy pods (blue) of both rules over the day](day.svg)

{times}

## With the job store

The same with the real job store in Redis, its sweep, and the backlog that its metrics export, which is an
estimate from recent runs: {small_jobs:,} jobs, {small_peak} GPUs at the peak.

{in_store}

## From zero and back

{trial_jobs} jobs in a day, most of them around 16:00, with the real job store and the rule of the chart:
the pool was started from zero {trial_starts} times, and its pods existed for {trial_hours:.1f} hours
instead of 24. Half of the jobs had ended after {trial_median:.0f} s and all after {trial_slowest:.0f} s;
{trial_met} of the deadlines were met, as a cold start alone takes longer than a clip may.

{at}, commit {commit}; {cpu}, {cores} cores, load {load} before the run; Python {python}.
"""
