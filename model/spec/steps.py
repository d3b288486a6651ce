"""Count the denoising steps of the base video, which `model.pipeline.schedule` lays out."""

from __future__ import annotations

import math

from model.spec.plan import Plan

LAST_SIGMA = 0.001
ENHANCED_FROM, ENHANCED_STRIDE = 500, 50
"""The timestep from which `enhance_hf` replaces those of the schedule, and the distance between its own."""

RELEASED_SHIFT = 12.0
"""The shift of the noise levels of the released checkpoint, which those of others may differ from."""


def num_steps(plan: Plan, *, is_continuation: bool, shift: float = RELEASED_SHIFT) -> int:
    """Return the steps of a segment. With `enhance_hf`, a continuation has more of them at low noise."""
    steps = plan.num_inference_steps
    if not (is_continuation and plan.enhance_hf):
        return steps
    # A level whose timestep is above 500 was above 1 / (shift + 1) before it was shifted.
    high = math.ceil(shift / (shift + 1) * (steps - 1) / (1 - LAST_SIGMA)) if steps > 1 else 1
    return high + ENHANCED_FROM // ENHANCED_STRIDE


def total_steps(plan: Plan, num_segments: int, *, continues_clip: bool = False) -> int:
    """Return the steps of the first segments of a job, the first of which may continue a given clip."""
    if plan.task == "refine" or not num_segments:
        return 0
    later = num_steps(plan, is_continuation=True)
    return num_steps(plan, is_continuation=continues_clip) + (num_segments - 1) * later
