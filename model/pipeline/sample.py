"""Denoise: the one loop, with the one Euler update, for every task.

Tasks differ only in their `Conditioning`: which frames are clean, which schedule, which attention.

Next on the way of a request: `model.vae.vae`, which decodes the latents to pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.parallel.cfg_split import branch_for, gather_texts, local_texts
from model.parallel.mesh import ContextParallel
from model.pipeline.guidance import guide
from model.transformer.dit import Dit, TextKVs
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Window, build_layout

ProjectText = Callable[[Dit, ContextParallel, Tensor, Tensor], TextKVs]  # see `project_local_texts`


def project_local_texts(
    dit: Dit,
    branch: ContextParallel,
    text: Float[Tensor, "all_texts l e"],
    mask: Int[Tensor, "all_texts l"],
) -> TextKVs:
    """Project the texts that this rank predicts for. All ranks of a group call this together."""
    return dit.text_kv(local_texts(branch, text), local_texts(branch, mask))


@dataclass(frozen=True)
class Conditioning:
    """The inputs of one stage of denoising. Latents are fp32 and normalised.

    Attributes:
        start: the noise frames before step `first_step`.
        clean: condition frames before the noise frames, perhaps none. They are never updated.
        text: hidden states of the prompt or, with guidance, of the negative prompt and the prompt.
        mask: 1 for each text token that is not padding.
        timesteps: one for each step; a timestep is 1000 · sigma.
        sigmas: noise levels between the steps, one more than steps; the last is 0.
        guidance_scale: used where there are two texts.
        cache_condition: compute the keys and values of the clean frames once, instead of at every step.
        block_sparse: use block-sparse attention.
        step_cache: threshold of a `StepCache`; None runs every step in full.
        lora: name of the LoRA file to merge, if any.
        first_step: number of steps that are already done.
    """

    start: Float[Tensor, "1 z f h w"]
    clean: Float[Tensor, "1 z clean_f h w"]
    text: Float[Tensor, "all_texts l e"]
    mask: Int[Tensor, "all_texts l"]
    timesteps: Float[Tensor, " steps"]
    sigmas: Float[Tensor, " levels"]
    guidance_scale: float = 1.0
    cache_condition: bool = False
    block_sparse: bool = False
    step_cache: float | None = None
    lora: str | None = None
    first_step: int = 0

    @property
    def num_steps(self) -> int:
        """Return the number of steps of the whole stage."""
        return len(self.timesteps)


def denoise(
    dit: Dit,
    conditioning: Conditioning,
    parallel: ContextParallel,
    step_cache: StepCache | None = None,
    project_text: ProjectText = project_local_texts,
) -> Iterator[Float[Tensor, "1 z f h w"]]:
    """Step from noise to latents, and yield the noise frames after each step.

    No step waits for the device, except to decide whether `step_cache` applies. Callers may pass a version of
    `project_text` that caches its results.
    """
    branch = branch_for(parallel, len(conditioning.text))
    text_kv = project_text(dit, branch, conditioning.text, conditioning.mask)
    num_texts = len(local_texts(branch, conditioning.text))

    latents, clean = conditioning.start, conditioning.clean
    num_clean, num_noise = clean.shape[2], latents.shape[2]
    height, width = latents.shape[3:]
    condition_kv = None
    window = Window(num_clean + num_noise, height, width, num_condition=num_clean)
    if conditioning.cache_condition and num_clean:
        clean_window = Window(num_clean, height, width)
        condition_kv = dit.condition_kv(clean, build_layout(dit.config, clean_window, branch, sparse=False))
        window = Window(num_noise, height, width, first=num_clean)
        clean = clean[:, :, :0]
    layout = build_layout(dit.config, window, branch, sparse=conditioning.block_sparse)

    for step in range(conditioning.first_step, conditioning.num_steps):
        # Predict the velocity of all frames, for each text. Clean frames have timestep 0.
        x = torch.cat([clean, latents], dim=2).expand(num_texts, -1, -1, -1, -1)
        timestep = conditioning.timesteps[step].expand(num_texts, num_noise)
        timesteps = torch.cat([timestep.new_zeros(num_texts, clean.shape[2]), timestep], dim=1)
        velocity = gather_texts(branch, dit(x, timesteps, layout, text_kv, condition_kv, step_cache))

        # Guide the prediction for the prompt away from that for the negative prompt.
        if len(velocity) == 2:
            negative, positive = velocity.chunk(2)
            velocity = guide(negative, positive, conditioning.guidance_scale)

        # Take an Euler step. The model predicts x0 − noise, so the sign is negative.
        sigma, next_sigma = conditioning.sigmas[step], conditioning.sigmas[step + 1]
        latents = latents - (next_sigma - sigma) * velocity[:, :, -num_noise:]
        yield latents
