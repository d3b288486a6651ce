"""Run a step of videos that are expected, so that their kernels are compiled before the first job."""

from collections.abc import Iterator

import torch

from model.parallel.mesh import ContextParallel
from model.pipeline.sample import Conditioning, denoise
from model.spec.geometry import VAE_STRIDE, latent_frames
from model.spec.memory import StageShape
from model.spec.plan import Plan, refine_layout_of
from model.spec.resolve import Inputs
from model.transformer.dit import Dit


def stage_shapes(plan: Plan, inputs: Inputs) -> Iterator[StageShape]:
    """Yield the shapes of the stages of a plan: of its first segment, and of later ones if there are any."""
    for segment in range(min(plan.num_segments, 2)):
        if plan.task != "refine":
            yield _base_shape(plan, inputs, segment)
        if plan.refinement:
            layout = refine_layout_of(plan, segment)
            yield StageShape(
                num_frames=layout.latent_frames,
                height=plan.refinement.height,
                width=plan.refinement.width,
                num_condition=layout.condition_latents,
                block_sparse=True,
            )


def _base_shape(plan: Plan, inputs: Inputs, segment: int) -> StageShape:
    is_continuation = segment > 0 or inputs.video is not None
    num_condition = plan.num_condition_frames if is_continuation else int(inputs.image is not None)
    return StageShape(
        num_frames=latent_frames(plan.num_frames),
        height=plan.height,
        width=plan.width,
        num_condition=latent_frames(num_condition) if num_condition else 0,
        num_texts=2 if plan.guidance_scale > 1 else 1,
        condition_cache=is_continuation and plan.condition_cache,
    )


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
