"""Run a step of videos that are expected, so that their kernels are compiled before the first job."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.parallel.mesh import ContextParallel
from model.pipeline.sample import Conditioning, denoise
from model.spec.geometry import VAE_STRIDE, Size, latent_frames
from model.spec.plan import Plan, refine_layout_of
from model.spec.resolve import Inputs
from model.transformer.dit import Dit


@dataclass(frozen=True)
class StageShape:
    """Determine the shapes of all tensors in a stage of denoising.

    Attributes:
        size: size of the frames in pixels.
        clean: number of latent frames that are not denoised.
        noise: number of those that are.
        guided: whether there are two texts.
        cache_condition: as in `Conditioning`.
        block_sparse: as in `Conditioning`.
    """

    size: Size
    clean: int
    noise: int
    guided: bool = False
    cache_condition: bool = False
    block_sparse: bool = False


def stage_shapes(plan: Plan, inputs: Inputs) -> Iterator[StageShape]:
    """Yield the shapes of the stages of a plan: of its first segment, and of later ones if there are any."""
    for segment in range(min(plan.num_segments, 2)):
        if plan.task != "refine":
            yield _base_shape(plan, inputs, segment)
        if plan.refinement:
            layout = refine_layout_of(plan, segment)
            size = Size(plan.refinement.height, plan.refinement.width)
            yield StageShape(size, layout.condition_latents, layout.noise_latents, block_sparse=True)


def _base_shape(plan: Plan, inputs: Inputs, segment: int) -> StageShape:
    is_continuation = segment > 0 or inputs.video is not None
    num_condition = plan.num_condition_frames if is_continuation else int(inputs.image is not None)
    clean = latent_frames(num_condition) if num_condition else 0
    return StageShape(
        Size(plan.height, plan.width),
        clean,
        latent_frames(plan.num_frames) - clean,
        guided=plan.guidance_scale > 1,
        cache_condition=is_continuation and plan.condition_cache,
    )


def warm_up(dit: Dit, shape: StageShape, num_text_tokens: int, parallel: ContextParallel) -> None:
    """Run one step with tensors of these shapes. All ranks of a group call this together."""
    device, config = parallel.device, dit.config
    sides = (side // VAE_STRIDE for side in shape.size)
    frames = torch.zeros(1, config.in_channels, shape.clean + shape.noise, *sides, device=device)
    num_texts = 1 + shape.guided
    conditioning = Conditioning(
        start=frames[:, :, shape.clean :],
        clean=frames[:, :, : shape.clean],
        text=torch.zeros(num_texts, num_text_tokens, config.caption_channels, device=device, dtype=dit.dtype),
        mask=torch.ones(num_texts, num_text_tokens, dtype=torch.long, device=device),
        timesteps=torch.tensor([1000.0], device=device),
        sigmas=torch.tensor([1.0, 0.0], device=device),
        cache_condition=shape.cache_condition,
        block_sparse=shape.block_sparse,
    )
    for _ in denoise(dit, conditioning, parallel):
        pass
