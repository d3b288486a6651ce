"""Summarise outcomes: deadlines met, response times, predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles

from benchmarks.simulation.simulator import Outcome
from benchmarks.simulation.trace import MIX


@dataclass(frozen=True)
class Summary:
    """What a run achieved.

    Attributes:
        deadlines_met: share of the jobs.
        by_kind: for each kind of `MIX`, the share of deadlines met, and median and 99th percentile of the
            response time in seconds.
        longest_s: the longest response time.
        utilisation: share of the time from the first arrival to the last end in which GPUs computed.
        prediction_error: median of the relative error of the time that was predicted at submission.
    """

    deadlines_met: float
    by_kind: Mapping[str, tuple[float, float, float]]
    longest_s: float
    utilisation: float
    prediction_error: float | None


def summarise(outcomes: Sequence[Outcome], num_gpus: int) -> Summary:
    """Return the summary of a run."""
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    names = {kind.params: kind.name for kind in MIX}
    for outcome in outcomes:
        kinds[names.get(outcome.arrival.request, "other")].append(outcome)
    span_s = max(outcome.ended_s for outcome in outcomes) - min(outcome.arrival.at_s for outcome in outcomes)
    errors = [
        abs(outcome.predicted_s - outcome.response_s) / outcome.response_s
        for outcome in outcomes
        if outcome.predicted_s is not None
    ]
    return Summary(
        deadlines_met=share(outcomes),
        by_kind={
            name: (share(own), median(times), quantiles(times, n=100)[-1])
            for name, own in sorted(kinds.items())
            if len(times := [outcome.response_s for outcome in own]) > 1
        },
        longest_s=max(outcome.response_s for outcome in outcomes),
        utilisation=sum(outcome.gpu_s for outcome in outcomes) / (span_s * num_gpus),
        prediction_error=median(errors) if errors else None,
    )


def share(outcomes: Iterable[Outcome]) -> float:
    """Return the share of the jobs that met their deadlines."""
    return mean(outcome.deadline_met for outcome in outcomes)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float) -> str:
    """Return a share in percent, with the digit that tells 99.9 from 100."""
    return f"{100 * value:.1f} %"
