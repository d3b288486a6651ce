"""Measure the size of a job in work units, so that run times of different jobs can be compared.

A unit is one pixel of one frame in one pass of the model. The second stage and cached steps are counted by
the shares that they typically take. The steps that `enhance_hf` adds are not counted, because the run times
of jobs are compared with those that earlier releases recorded without them. Within a task, the difference is
nearly constant.
"""

from __future__ import annotations

from model.spec.plan import Plan

REFINED_SHARE = 0.1
"""Share of the refinement's steps that lie below its noise level."""

CACHED_SHARE = 0.6
"""Share of the work that is left where steps may come from the step cache; 0.55 to 0.65 is reported."""


def work_units(plan: Plan) -> int:
    """Return the work units of a job, at least 1."""
    frames = plan.num_frames * plan.num_segments
    passes = 2 if plan.guidance_scale > 1 else 1
    units = 0.0
    if plan.task != "refine":
        units = float(plan.height * plan.width * frames * plan.num_inference_steps * passes)
    if plan.step_cache is not None:
        units *= CACHED_SHARE
    if second := plan.refinement:
        growth = 1 if second.spatial_only else 2
        units += second.height * second.width * frames * growth * second.num_inference_steps * REFINED_SHARE
    return max(1, round(units))
