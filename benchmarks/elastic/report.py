"""Summarise runs, and write the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from benchmarks.elastic.installation import LatentsOf, Outcome, Run
from benchmarks.elastic.trace import Video
from benchmarks.machine import Machine
from benchmarks.simulation.report import percent, table
from benchmarks.simulation.trace import MIX

Summary = Mapping[str, Any]

SAME_LATENTS = 1e-5
"""The greatest difference between the latents of a job and those of one rank."""


def summary(run: Run, alone: Mapping[Video, LatentsOf], speedup: float) -> dict[str, object]:
    """Return what a run achieved. Times are seconds of LongCat-Video; differences are of latents."""
    kinds: dict[str, list[Outcome]] = {kind.name: [] for kind in MIX}
    for outcome in run.outcomes:
        kinds[outcome.video.kind].append(outcome)
    return {
        "deadlines_met": _share_met(run.outcomes),
        "by_kind": {name: _of_kind(outcomes, speedup) for name, outcomes in kinds.items() if outcomes},
        "gpu_s": sum(outcome.gpu_s for outcome in run.outcomes) * speedup,
        "staged_gpu_s": run.staged_gpu_s * speedup,
        "num_changes": run.num_changes,
        "max_widths": run.max_widths,
        "late_steps": run.late_steps,
        "late_decodes": run.late_decodes,
        "attempts": sum(outcome.attempts for outcome in run.outcomes),
        "difference": max(difference(outcome.latents, alone[outcome.video]) for outcome in run.outcomes),
    }


def difference(latents: LatentsOf, expected: LatentsOf) -> float:
    """Return the greatest difference of two jobs' latents. Raises AssertionError if stages are missing."""
    assert latents.keys() == expected.keys()
    return max(float((latents[name] - expected[name]).abs().max()) for name in expected)


def _share_met(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.deadline_met for outcome in outcomes) / len(outcomes)


def _of_kind(outcomes: Sequence[Outcome], speedup: float) -> dict[str, float]:
    times_s = sorted(outcome.response_s * speedup for outcome in outcomes)
    return {
        "jobs": len(outcomes),
        "deadlines_met": _share_met(outcomes),
        "p50_s": median(times_s),
        "p99_s": quantiles(times_s, n=100, method="inclusive")[-1] if len(times_s) > 1 else times_s[0],
    }


def page(options: Any, found: Mapping[str, Summary]) -> str:  # noqa: ANN401 - see __main__
    """Return the page."""
    names = list(found)
    rows = [
        ["deadlines met", *(percent(each["deadlines_met"]) for each in found.values())],
        ["GPU-seconds", *(f"{each['gpu_s']:,.0f}" for each in found.values())],
        ["of them staged", *(percent(each["staged_gpu_s"] / each["gpu_s"]) for each in found.values())],
        ["changes of width", *(str(each["num_changes"]) for each in found.values())],
        ["attempts", *(str(each["attempts"]) for each in found.values())],
        ["steps whose computation took longer", *(percent(each["late_steps"]) for each in found.values())],
        ["decodes, the same", *(percent(each["late_decodes"]) for each in found.values())],
        ["greatest difference of latents", *(f"{each['difference']:.1e}" for each in found.values())],
        ["load of the machine before the run", *(f"{each['machine']['load']}" for each in found.values())],
    ]
    kinds = [
        [
            kind.name,
            str(found[names[0]]["by_kind"][kind.name]["jobs"]),
            f"{kind.deadline_s:.0f} s",
            *(
                f"{percent(own['deadlines_met'])}, {own['p50_s']:.0f} s, {own['p99_s']:.0f} s"
                for own in (each["by_kind"][kind.name] for each in found.values())
            ),
        ]
        for kind in MIX
        if kind.name in found[names[0]]["by_kind"]
    ]
    return _PAGE.format(
        jobs=options.jobs,
        seed=options.seed,
        load=options.load,
        speedup=options.speedup,
        totals=table(["", *names], rows),
        kinds=table(["kind", "jobs", "deadline", *names], kinds),
        machines="\n".join(f"- {name}: {Machine(**each['machine'])}" for name, each in found.items()),
    )


_PAGE = """\
# Elastic groups on a real installation

Written by `python -m benchmarks.elastic`. Redis, API, one worker with its supervisors, four gloo ranks,
checkpoints and MP4 files are real: jobs come over HTTP with `deadline_s`, the worker changes their number of
ranks while they run, and the latents of every stage of every job are compared with those of a single rank.
The weights are the small random ones of `model.tiny`: four ranks cannot share the six attention heads of
`pocket/`.

**Time is staged.** Four ranks on two cores are not faster than one. So each step and each decode lasts at
least as long as LongCat-Video's would on that number of GPUs, {speedup:g} times faster, by the model of the
simulation (`benchmarks/elastic/pace.py`: arithmetic, and the efficiencies of
`worker/supervisor/allocation.py`, none of which is measured). The real computation runs within that time. A
step of the small checkpoint stands for four of LongCat-Video: a distilled clip has 4 steps, one of "50
steps" has 12, guided. Everything else takes its real time, which counts {speedup:g} times here: claims,
checkpoints, changes of width, encoding text and MP4 files. The worker divides its ranks by the same table
that stages time, so this shows what the scheduler makes of the table, not whether the table is right.

{jobs} jobs arrive at random (Poisson, seed {seed}) at a load of {load:g}, the share of the time of four GPUs
that they take on groups of one: the mix and the deadlines of the [simulation](simulation.md). Times are
seconds of LongCat-Video. GPU-seconds are what the jobs report as
`gpu_s`; those that are not staged are what claims, messages, text, changes of width and late decodes took.
The list at the end says when each way to divide the ranks was run.

Where the computation of many steps took longer than staged, the machine was too busy or too slow for this
speed, and the times show little of what GPUs would do.

{totals}

Deadlines met, median and 99th percentile of the response time, by kind:

{kinds}

{machines}
"""
