"""Run a step of videos that are expected, so that their kernels are compiled before the first job."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from model.parallel.mesh import ContextParallel
from model.pipeline.sample import Conditioning, denoise
from model.spec.geometry import VAE_STRIDE
from model.spec.plan import Plan
from model.spec.resolve import Inputs
from model.spec.stages import StageShape, base_shape, refinement_shape
from model.transformer.dit import Dit


def stage_shapes(plan: Plan, inputs: Inputs) -> Iterator[StageShape]:
    """Yield the shapes of the stages of a plan: of its first segment, and of later ones if there are any."""
    for segment in range(min(plan.num_segments, 2)):
        if plan.task != "refine":
            is_continuation = segment > 0 or inputs.video is not None
            yield base_shape(plan) if is_continuation else _first_shape(plan, inputs)
        if plan.refinement:
            yield refinement_shape(plan, segment)


def _first_shape(plan: Plan, inputs: Inputs) -> StageShape:
    """Return the shape of a base video that begins with noise, or with an image, which is never cached."""
    return replace(base_shape(plan), num_condition=int(inputs.image is not None), condition_cache=False)


def warm_up(dit: Dit, shape: StageShape, num_text_tokens: int, parallel: ContextParallel) -> None:
    """Run one step with tensors of these shapes. All ranks of a group call this together."""
    device, config = parallel.device, dit.config
    sides = (side // VAE_STRIDE for side in (shape.height, shape.width))
    frames = torch.zeros(1, config.in_channels, shape.num_frames, *sides, device=device)
    tokens = shape.num_texts, num_text_tokens
    conditioning = Conditioning(
        start=frames[:, :, shape.num_condition :],
        clean=frames[:, :, : shape.num_condition],
        text=torch.zeros(*tokens, config.caption_channels, device=device, dtype=dit.dtype),
        mask=torch.ones(*tokens, dtype=torch.long, device=device),
        timesteps=torch.tensor([1000.0], device=device),
        sigmas=torch.tensor([1.0, 0.0], device=device),
        cache_condition=shape.condition_cache,
        block_sparse=shape.block_sparse,
    )
    for _ in denoise(dit, conditioning, parallel):
        pass
