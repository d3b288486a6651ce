"""State how long LongCat-Video takes for what the small checkpoint does, by the model of the simulation.

The small checkpoint makes the same kinds of jobs with fewer steps, so each of its passes stands for several.
"""

from __future__ import annotations

from benchmarks.simulation.times import (
    DECODE_S,
    FORWARD_PFLOP,
    PFLOP_PER_S,
    REFINED_DECODE_S,
    REFINEMENT_PFLOP,
)
from model.spec.plan import Plan
from worker.supervisor.allocation import efficiency

FORWARDS_OF_A_PASS = 4
"""The forward passes of LongCat-Video for which one of the small checkpoint stands."""

STEPS, DISTILLED_STEPS = 12, 4
"""The steps of the small checkpoint that stand for 48 and for 16."""


def step_s(plan: Plan, stage: str, num_steps: int, width: int) -> float:
    """Return how long one of the `num_steps` steps of a stage takes on `width` GPUs."""
    passes = 2 if plan.guidance_scale > 1 else 1
    pflop = REFINEMENT_PFLOP / num_steps if stage == "refine" else passes * FORWARDS_OF_A_PASS * FORWARD_PFLOP
    return pflop / PFLOP_PER_S / _speed(plan, width)


def decode_s(plan: Plan, stage: str, width: int) -> float:
    """Return how long `width` GPUs take to decode the latents of a stage."""
    return (REFINED_DECODE_S if stage == "refine" else DECODE_S) / _speed(plan, width)


def run_s(plan: Plan, width: int) -> float:
    """Return how long a job takes on `width` GPUs."""
    passes = plan.num_inference_steps * (2 if plan.guidance_scale > 1 else 1)
    seconds = passes * FORWARDS_OF_A_PASS * FORWARD_PFLOP / PFLOP_PER_S + DECODE_S
    if plan.refinement:
        seconds += REFINEMENT_PFLOP / PFLOP_PER_S + REFINED_DECODE_S
    return plan.num_segments * seconds / _speed(plan, width)


def _speed(plan: Plan, width: int) -> float:
    return width * efficiency(width, guided=plan.guidance_scale > 1)
