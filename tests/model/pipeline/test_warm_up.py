"""Warming up meets every shape of tensors that jobs have, so that no job waits for the compiler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.parallel.mesh import SINGLE
from model.pipeline.request import Request
from model.pipeline.warm_up import stage_shapes, warm_up
from model.spec.params import GenerationParams
from model.spec.resolve import resolve
from model.spec.typical import typical_inputs

SHORT = {"num_frames": 9, "num_inference_steps": 1}
CONTINUED = {**SHORT, "num_condition_frames": 5}


def shapes_met(pipeline, run: Callable[[], object]):
    """Return the shapes of the inputs of blocks, and what their layouts say of them, while `run` runs."""
    met = set()

    def record(_, arguments) -> None:
        x, _, layout, *_ = arguments
        groups = layout.num_condition_groups, layout.num_cached_groups
        met.add((x.shape, layout.grid, *groups, layout.bricks is None))

    handle = pipeline.dit.blocks[0].register_forward_pre_hook(record)
    try:
        run()
    finally:
        handle.remove()
    return met


@pytest.mark.parametrize(
    "options",
    [
        SHORT,
        {**SHORT, "guidance_scale": 1.0},
        {**SHORT, "task": "image_to_video"},
        {**SHORT, "refine": True, "spatial_refine_only": True},
        {**CONTINUED, "task": "video_continuation"},
        {**CONTINUED, "task": "video_continuation", "condition_cache": False},
        {**CONTINUED, "num_segments": 2},
        pytest.param({**CONTINUED, "num_segments": 2, "refine": True}, marks=pytest.mark.integration),
        pytest.param({"task": "refine"}, marks=pytest.mark.integration),
    ],
    ids=str,
)
def test_warming_up_meets_the_shapes_of_a_job(tiny_pipeline, options):
    params = GenerationParams(**options)
    inputs = typical_inputs(params, tiny_pipeline.limits)
    plan = resolve(params, inputs, tiny_pipeline.limits)
    image = torch.zeros(*inputs.image, 3, dtype=torch.uint8) if inputs.image else None
    clip = inputs.video
    video = torch.zeros(clip.num_frames, clip.height, clip.width, 3, dtype=torch.uint8) if clip else None
    request = Request(plan, ("a ball",), 1, image=image, video=video)

    def warm() -> None:
        for shape in stage_shapes(plan, inputs):
            warm_up(tiny_pipeline.dit, shape, 512, SINGLE)

    expected = shapes_met(tiny_pipeline, lambda: list(tiny_pipeline.generate(request)))
    assert shapes_met(tiny_pipeline, warm) == expected
