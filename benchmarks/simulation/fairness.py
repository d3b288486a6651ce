"""Measure how far the service of owners is from their weights, while all of them have queued jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulation.simulator import Outcome
from benchmarks.simulation.times import run_s

LENGTHS_IN_WINDOW = 30

Times = NDArray[np.float64]
"""Float64 [times], in seconds."""


@dataclass(frozen=True)
class Fairness:
    """How far owners were from their shares, at worst.

    Attributes:
        mean_s: the mean length of a job, its time on one GPU.
        longest_s: that of the longest.
        in_mean_windows: over all windows of 30 mean lengths, the greatest difference between the GPU time
            that an owner was served and the owner's share of what all were served, as a part of the share.
        in_longest_windows: the same over all windows of 30 longest lengths.
        furthest: the greatest such difference over all sequences of jobs that started one after the other, in
            longest jobs. Each counts with all its GPU time when it starts.
    """

    mean_s: float
    longest_s: float
    in_mean_windows: float
    in_longest_windows: float
    furthest: float


def fairness(outcomes: Sequence[Outcome], weights: Mapping[str, float]) -> Fairness:
    """Return how fair the outcomes are. All owners must have had queued jobs until the last one started."""
    lengths_s = [run_s(outcome.arrival.plan, 1) for outcome in outcomes]
    mean_s, longest_s = mean(lengths_s), max(lengths_s)
    return Fairness(
        mean_s,
        longest_s,
        _worst_in_windows(outcomes, weights, LENGTHS_IN_WINDOW * mean_s),
        _worst_in_windows(outcomes, weights, LENGTHS_IN_WINDOW * longest_s),
        _furthest(outcomes, weights) / longest_s,
    )


def _worst_in_windows(outcomes: Sequence[Outcome], weights: Mapping[str, float], window_s: float) -> float:
    """Return the greatest difference from an owner's share, as a part of the share, in windows of this time.

    Between two changes of the GPUs of any job, what an owner was served is linear in time, so only windows
    that begin or end with one of them are looked at.
    """
    last_s = max(outcome.started_s for outcome in outcomes)
    turns = np.unique([at_s for outcome in outcomes for at_s, _ in outcome.served])
    begins_s = np.concatenate([turns, turns - window_s])
    begins_s = begins_s[(begins_s >= 0) & (begins_s + window_s <= last_s)]
    assert len(begins_s), "the outcomes are fewer than a window"
    served = {
        owner: _served(own, begins_s + window_s) - _served(own, begins_s)
        for owner in weights
        for own in [[outcome for outcome in outcomes if outcome.arrival.owner == owner]]
    }
    total = sum(served.values())
    shares = {owner: total * weight / sum(weights.values()) for owner, weight in weights.items()}
    return max(float(np.abs(served[owner] / shares[owner] - 1).max()) for owner in weights)


def _served(outcomes: Sequence[Outcome], at_s: Times) -> Times:
    """Return the GPU time that jobs were served up to each of these times."""
    total = np.zeros_like(at_s)
    for outcome in outcomes:
        times, gpu_s = np.array(outcome.served).T
        total += np.interp(at_s, times, gpu_s)
    return total


def _furthest(outcomes: Sequence[Outcome], weights: Mapping[str, float]) -> float:
    """Return the greatest difference from an owner's share over all sequences of started jobs, in s."""
    started = sorted(outcomes, key=lambda outcome: outcome.started_s)
    gpu_s = np.array([outcome.gpu_s for outcome in started])
    worst = 0.0
    for owner, weight in weights.items():
        is_own = np.array([outcome.arrival.owner == owner for outcome in started])
        ahead_s = np.cumsum(gpu_s * (is_own - weight / sum(weights.values())))
        worst = max(worst, float(np.ptp(np.concatenate([[0.0], ahead_s]))))
    return worst
