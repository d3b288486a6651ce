"""Model how long a job runs on a group of a given size.

No GPU of ours has been timed, so these are numbers of others: arithmetic from counted FLOPs
(docs/performance.md) at a rate that published servers reach with a model of this size. What several ranks
lose is in `worker.supervisor.allocation`.
"""

from __future__ import annotations

from model.spec.plan import Plan
from worker.supervisor.allocation import efficiency

FORWARD_PFLOP = 1.967
"""One forward pass at 480×832 with 93 frames, counted."""

REFINEMENT_PFLOP = 26.5
"""The forward passes of a refinement of such a segment, counted."""

PFLOP_PER_S = 0.6
"""Of one H200; 0.55 to 0.65 is published for a Wan model of 14 billion parameters."""

DECODE_S, REFINED_DECODE_S = 1.1, 5.3
"""Decoding a segment at 480p and after refinement, calculated."""

REFINEMENT_STEPS = 5
"""The steps of a refinement that lie below its noise level."""


def run_s(plan: Plan, num_ranks: int) -> float:
    """Return how long a job of the sizes of `MIX` runs."""
    passes = plan.num_inference_steps * (2 if plan.guidance_scale > 1 else 1)
    seconds = passes * FORWARD_PFLOP / PFLOP_PER_S + DECODE_S
    if plan.refinement:
        seconds += REFINEMENT_PFLOP / PFLOP_PER_S + REFINED_DECODE_S
    return plan.num_segments * seconds / _speed(plan, num_ranks)


def step_s(plan: Plan, num_ranks: int) -> float:
    """Return how long the longest step of such a job takes."""
    pflop = FORWARD_PFLOP * (2 if plan.guidance_scale > 1 else 1)
    if plan.refinement:
        pflop = max(pflop, REFINEMENT_PFLOP / REFINEMENT_STEPS)
    return pflop / PFLOP_PER_S / _speed(plan, num_ranks)


def _speed(plan: Plan, num_ranks: int) -> float:
    return num_ranks * efficiency(num_ranks, guided=plan.guidance_scale > 1)
